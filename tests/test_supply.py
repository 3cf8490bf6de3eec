"""What is installed and built: pinned versions, and code that runs only what it is."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def config() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def pins(name: str) -> dict[str, str]:
    """Versions by normalised package name; every line is NAME==VERSION or a comment."""
    lines = (ROOT / "constraints" / name).read_text(encoding="ascii").splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", entry) for entry in entries)
    found = {normal(entry.split("==")[0]): entry.split("==")[1] for entry in entries}
    assert len(found) == len(entries)
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(*extras: str) -> list[tuple[str, str, str]]:
    """(package, ">=" or "==" or "", version) of the runtime and of extras."""
    texts = [config()["options"]["install_requires"], *(config()["options.extras_require"][name] for name in extras)]
    matches = [re.fullmatch(r"([\w.-]+?)(?:(>=|==)([\w.]+))?", line) for t in texts for line in t.split()]
    assert all(matches)
    return [(normal(m[1]), m[2] or "", m[3] or "") for m in matches if m]


def version(text: str) -> tuple[int, ...]:
    numbers = [int(part) for part in text.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def test_ci_pins_what_setup_cfg_asks_for() -> None:
    found = pins("ci.txt")
    for package, relation, bound in required("test", "tools", "check"):
        assert package in found, package
        if relation == "==":
            assert version(found[package]) == version(bound), package
        elif relation:
            assert version(found[package]) >= version(bound), package
    assert found["torch"] == "2.13.0"
    assert "-c constraints/ci.txt" in (ROOT / ".ci" / "run").read_text() if (ROOT / ".ci").exists() else True


def test_lowest_is_the_lower_bounds() -> None:
    found = {package: version(text) for package, text in pins("lowest.txt").items()}
    assert found == {package: version(bound) for package, _, bound in required("test")}


# ------------------------------------------------------------------------------------------------------- running code

ALLOWED = {
    ("intseg/batch/executors.py", "pickle"): "the model for the workers that this process starts, through their pipe",
    (
        "kernels/_jit.py",
        "pickle",
    ): "entries of the kernel cache: only of a folder that nobody else may write to, only with "
    "the digest of what this user's process wrote",
}
"""File and module or function that could run what a file or the network says, and why it may be there."""

MODULES = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "runpy",
    "code",
    "subprocess",
    "ctypes",
    "cffi",
}
MODULES |= {"socket", "ssl", "http", "urllib", "urllib3", "requests", "ftplib", "smtplib", "xmlrpc", "socketserver"}
MODULES |= {"asyncio", "webbrowser", "yaml", "telnetlib", "imp"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {"system", "popen", "execv", "execve", "execvp", "spawnv", "import_module", "exec_module"}


def dangers(source: str) -> Iterator[str]:
    """Modules and calls that run data as code or reach a network; reading arrays that may be pickles."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[0] for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in MODULES:
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            attribute = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if name in CALLS or (attribute in ATTRIBUTES and ast.unparse(node.func) != "platform.system"):
                yield name or attribute
            if attribute == "load" and ast.unparse(node.func) in ("np.load", "numpy.load"):
                given = {k.arg: k.value for k in node.keywords}.get("allow_pickle")
                if not (isinstance(given, ast.Constant) and given.value is False):
                    yield "np.load"
            if ast.unparse(node.func) == "torch.load":
                given = {k.arg: k.value for k in node.keywords}.get("weights_only")
                if not (isinstance(given, ast.Constant) and given.value is True):
                    yield "torch.load"


def test_the_runtime_runs_nothing_that_a_file_says() -> None:
    own = [p for p in (ROOT / "intseg").rglob("*.py") if not {"kernels", "tools"} & set(p.parts)]
    sources = [*own, *(ROOT / "kernels").glob("*.py")]
    paths = {path.relative_to(ROOT).as_posix(): path for path in sources}
    found = {(name, word) for name, path in paths.items() for word in dangers(path.read_text(encoding="utf-8"))}
    assert found == set(ALLOWED)


def test_tools_load_checkpoints_as_tensors_only() -> None:
    """containers.py has its own reader: what `weights_only` does not allow becomes a stand-in that does nothing."""
    for path in (ROOT / "tools").rglob("*.py"):
        found = {"torch.load", "np.load"} & set(dangers(path.read_text(encoding="utf-8")))
        assert found == ({"torch.load"} if path.name == "containers.py" else set()), path.name


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from urllib import request", "import http.client", "eval(x)", "exec(x)", "np.load(f)",
        "np.load(f, allow_pickle=True)", "torch.load(f)", "torch.load(f, weights_only=False)", "os.system(x)",
        "importlib.import_module(x)", "import socket", "__import__(x)",
    ],
)  # fmt: skip
def test_the_check_finds_dangers(code: str) -> None:
    assert list(dangers(code))


def test_the_check_passes_what_is_safe() -> None:
    assert not list(
        dangers("np.load(f, allow_pickle=False)\ntorch.load(f, weights_only=True)\nre.compile(x)\nmodel.compile()")
    )
