"""The commands of every page work as written.

A page is run here or in the file that `RUN` names, or a block says by a comment why it is not: then its programs exist
and take its options.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.numpy
from patterns import write_set

from intseg import backends, store
from intseg.cli import main as cli
from intseg.ops import RUN as OPS
from intseg.reports import doctor

ROOT = Path(__file__).resolve().parents[1]

RUN = {
    "README.md": "tests/test_readme.py",
    "docs/FAQ.md": "tests/test_docs.py",
    "docs/TUTORIAL.md": "tests/test_docs.py",
    "docs/WORKBENCH.md": "tests/test_docs.py",
    "docs/OPS.md": "tests/test_docs.py",
    "docs/CLUSTER.md": "tests/test_spread.py",
    "docs/ARITHMETIC.md": "tests/test_docs.py",
    "docs/ONNX.md": "tests/test_docs.py",
    "docs/TOSA.md": "tests/test_docs.py",
    "golden/rtl/README.md": "tests/test_docs.py",
    "golden/reader/README.md": "tests/test_docs.py",
}
"""Pages of which every command is run, but those blocks that say why not, and by which tests."""

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("docs/*.md", "*.md", "golden/**/README.md", "tests/README.md", "tools/README.md")
    for path in ROOT.glob(pattern)
)

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def plain(page: str) -> list[str]:
    """The blocks of commands that no comment takes out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"(<!-- not run in tests: [^\n]+ -->\n)?^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [script for marker, script in found if not marker]


def shell(script: str, folder: Path) -> None:
    """Run a script where `python` and `intseg` are those of this interpreter; every command must succeed.

    Lines that are nothing but a command of intseg run in this process: a start of Python each is what takes longest.
    """
    lines = [line for line in script.replace("\\\n", " ").splitlines() if line.strip()]
    for plain, group in itertools.groupby(lines, lambda line: bool(words(line))):
        if plain:
            for line in group:
                here(words(line), folder)
        else:
            in_bash("\n".join(group), folder)


def in_bash(script: str, folder: Path) -> None:
    """Run lines for which a shell is needed."""
    programs = folder / ".programs"
    if not programs.exists():
        programs.mkdir()
        (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "intseg").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m intseg.cli "$@"\n')
        for program in programs.iterdir():
            program.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "INTSEG_DEBUG": ""}
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def words(line: str) -> list[str]:
    """The words of a command of intseg that bash has nothing to do for but a `> FILE` at its end; [] for others."""
    found = shlex.split(line, comments=True)
    plain = not re.search(r"[|&;<$`*?(){}]|>(?! \S+$)", re.sub(r"'[^']*'", "", line))
    return found if plain and found[:1] == ["intseg"] else []


def here(line: list[str], folder: Path) -> None:
    """Such a command, in this process."""
    *arguments, target = line if ">" in line else [*line, ">", ".printed"]
    with contextlib.chdir(folder), warnings.catch_warnings(), open(target, "w+", encoding="utf-8") as out:
        warnings.simplefilter("ignore")
        errors = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = cli.main(arguments[1:-1])
        out.seek(0)
        assert code == 0, f"{line}\n{out.read()}\n{errors.getvalue()}"
    (folder / ".printed").unlink(missing_ok=True)


def make_data(folder: Path) -> None:
    """A checkpoint, photos and their labels, as a reader of the pages has them."""
    pytest.importorskip("torch")
    from intseg.tools.twin.checkpoint import save_checkpoint
    from intseg.tools.twin.config import SegmenterConfig
    from intseg.tools.twin.segmenter import random_segmenter

    config = SegmenterConfig(
        image_size=(32, 48), patch=8, d_model=32, n_layers=2, n_heads=2, mlp_dim=64, n_cls=11, window=(32, 48),
        stride=(24, 40), d_decoder=32, dec_layers=1, dec_heads=2, dec_mlp_dim=64,
    )  # fmt: skip
    save_checkpoint(random_segmenter(config, 3), folder / "checkpoint")
    write_set(folder, "photos", range(3), 40, 60, "truth")


def test_the_commands_of_the_faq(tmp_path: Path) -> None:
    shutil.copy(ROOT / "golden" / "images" / "street.png", tmp_path)
    found = plain("docs/FAQ.md")
    assert len(found) == 5
    for script in found:
        shell(script, tmp_path)
    for name in ("labels.png", "coloured_overlay.png", "results/street_labels.png", "results/street_overlay.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert (tmp_path / "records.jsonl").read_text().count("\n") == 1
    assert (tmp_path / "piped.png").read_bytes() == (tmp_path / "results" / "street_labels.png").read_bytes()


def test_the_commands_of_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor without the slow backend: tests/test_doctor.py has both."""
    monkeypatch.setattr(doctor, "installed_backends", lambda: (backends.resolve("auto"),))
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    make_data(tmp_path)
    found = blocks("docs/TUTORIAL.md", "sh")
    assert len(found) == 9
    shell("".join(found), tmp_path)
    assert len(list((tmp_path / "results").glob("*_labels.png"))) == 3
    assert not (tmp_path / "results" / "errors.jsonl").exists()
    monkeypatch.chdir(tmp_path)
    for block in blocks("docs/TUTORIAL.md", "python"):
        exec(compile(block, "TUTORIAL.md", "exec"), {})
    assert (tmp_path / "labels.png").is_file()


def test_the_conversion_of_the_readme(tmp_path: Path) -> None:
    """Two others install the project: `.ci/run` does so; `./check wheel` runs the rest (tests/ten_minutes.py)."""
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    make_data(tmp_path)
    shutil.copy(tmp_path / "photos" / "0.png", tmp_path / "photo.png")
    for name in ("checkpoint.pth", "variant.yml"):
        shutil.copy(tmp_path / "checkpoint" / name, tmp_path)
    found = blocks("README.md", "sh")
    assert len(found) == 5
    install, _, convert = found[4].partition("\n")
    assert install.startswith("pip install")
    shell(convert, tmp_path)
    assert (tmp_path / "photo_labels.png").is_file()


def test_the_commands_of_the_workbench(tmp_path: Path) -> None:
    shutil.copy(ROOT / "golden" / "images" / "small.png", tmp_path / "street.png")
    shutil.copy(ROOT / "golden" / "models" / "intseg.safetensors", tmp_path / "model.safetensors")
    (found,) = blocks("docs/WORKBENCH.md", "sh")
    trace, dump, diff, minimize, case = found.splitlines()
    shell(f"{trace}\n{dump}", tmp_path)
    shutil.copytree(tmp_path / "golden_hex", tmp_path / "mine")
    shell(diff, tmp_path)
    (wrong,) = (tmp_path / "mine").glob("window0.encoder.blocks.0.norm1.*")
    graph = store.load(tmp_path / "model.safetensors")
    node = graph.node("encoder.blocks.0.norm1")
    values = safetensors.numpy.load_file(tmp_path / "golden.safetensors")
    inputs, params = graph.arguments(node, {name: values[f"window0.{name}"] for name in node.inputs})
    result = OPS[node.op](*inputs, **params | {"bias": 0 * params["bias"]}, **node.attrs)  # quick to explain
    lines = (line for line in wrong.read_text().splitlines() if not re.fullmatch(r"[0-9a-f]+", line))
    wrong.write_text("\n".join([*lines, *(f"{value & 255:02x}" for value in result.reshape(-1).tolist())]) + "\n")
    with pytest.raises(AssertionError, match=r"(?s)encoder\.blocks\.0\.norm1.*cause: recomputed"):
        shell(diff, tmp_path)
    assert "encoder.blocks.0.norm1" in (tmp_path / "report.html").read_text()
    shell(f"{minimize} || [ $? = 1 ]", tmp_path)
    assert (tmp_path / "case.safetensors").stat().st_size > 0
    shell(case, tmp_path)
    assert {file.name for file in (tmp_path / "bench").iterdir()} >= {"in0.hex", "expected.hex", "param.mult.hex"}


@pytest.mark.parametrize("page", ["docs/ARITHMETIC.md", "docs/ONNX.md", "docs/TOSA.md"])
def test_the_commands_of_pages_on_a_small_model(page: str, tmp_path: Path) -> None:
    """Where a page names `camvid-tiny`; what is compared is the definition's own trace."""
    if page == "docs/ONNX.md":
        pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    shutil.copy(ROOT / "golden" / "images" / "small.png", tmp_path / "street.png")
    shutil.copy(ROOT / "golden" / "models" / "intseg.safetensors", tmp_path / "small.safetensors")
    (script,) = plain(page)
    script = re.sub(r"(?<![\w-])camvid-tiny(?![\w.-])", "small.safetensors", script)
    shell(script.replace("intseg diff", "cp trace.safetensors mine.safetensors\nintseg diff"), tmp_path)


def test_the_page_on_own_ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "golden" / "images" / "odd.png", tmp_path / "street.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("docs/OPS.md", "python"):
        exec(compile(block, "OPS.md", "exec"), names)
    (found,) = blocks("docs/OPS.md", "sh")
    shell(found, tmp_path)  # it is the definition after all: nothing differs


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler is installed")
def test_examples_build_into_folders_that_git_ignores(tmp_path: Path) -> None:
    """The reader, the C check, and the simulation where a simulator is installed: nothing but build/ is new."""
    shutil.copytree(ROOT / "golden", tmp_path / "golden", ignore=shutil.ignore_patterns("build", "traces", "ops"))
    before = set((tmp_path / "golden").rglob("*"))
    scripts = [("reader", block) for block in blocks("golden/reader/README.md", "sh")]
    needs = ("iverilog", "verilator", "cc")
    scripts += [("rtl", block) for block in blocks("golden/rtl/README.md", "sh") if shutil.which(tool(block, needs))]
    for folder, script in scripts:
        shell(script, tmp_path / "golden" / folder)
    assert (tmp_path / "golden" / "reader" / "build" / "labels.pgm").stat().st_size > 0
    new = {path.relative_to(tmp_path) for path in set((tmp_path / "golden").rglob("*")) - before}
    assert [path for path in new if not {"build", ".programs"} & set(path.parts)] == []
    assert "build/" in (ROOT / ".gitignore").read_text().split()


def tool(block: str, names: tuple[str, ...]) -> str:
    """The program that a block is about."""
    return next(name for name in names if re.search(rf"^{name} ", block, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"(<!-- not run in tests: .+ -->\n)?^```(sh|python)$", text, re.MULTILINE)
    if page not in RUN and page != "docs/API.md":  # signatures
        assert [language for marker, language in found if not marker] == []
    elif page in RUN:
        assert Path(page).name in (ROOT / RUN[page]).read_text(encoding="utf-8")
    assert re.findall(r"\n\n    (?:intseg|python|pip|cc|make) .*", text) == []


def commands() -> list[tuple[str, str]]:
    """(page, command line) of the programs of this project in every block of a page that is not run above."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in re.findall(r"<!-- not run in tests: [^\n]+ -->\n```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|\|\||[|;>]", line):
                    words = [word for word in shlex.split(part, comments=True) if not re.match(r"[A-Z_]+=", word)]
                    if words and (Path(words[0]).name == "intseg" or words[0] == "python"):
                        found.append((page, shlex.join(words)))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_programs_take_the_options_that_pages_give_them(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    if Path(words[0]).name == "intseg":
        cli._parse(words[1:])
        return
    assert words[1].endswith(".py"), line
    if words[1].startswith("tools/"):
        pytest.importorskip("torch")
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        parse(self, *args, **kwargs)  # type: ignore[call-overload]
        sys.exit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setattr(sys, "argv", words[1:])
    monkeypatch.syspath_prepend(str((ROOT / words[1]).parent))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    assert ended.value.code == 0, f"{page}: {line}"


@pytest.mark.parametrize("page", ["docs/TUTORIAL.md", "docs/FAQ.md"])
def test_files_that_are_named_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:docs|tools)/[\w./]+\.(?:md|py)", text):
        assert (ROOT / name).is_file(), name
