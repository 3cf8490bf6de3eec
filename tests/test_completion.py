"""Completion in the shells themselves: what the tab key makes of a line, where bash, zsh and fish are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from intseg.cli import main as cli

pty = pytest.importorskip("pty")

Capture = pytest.CaptureFixture[str]

_LINES = [
    ("intseg infe", ["infer"]),
    ("intseg infer --back", ["--backend"]),
    ("intseg infer --backend nump", ["numpy"]),
    ("intseg infer -w camvid-tiny-", ["camvid-tiny-paper"]),
    ("intseg infer str", ["street.png"]),
    ("intseg completion f", ["fish"]),
]

_SEVERAL = [("intseg infer --jobs ", []), ("intseg infer --backend num", ["numpy", "numba"])]

_ZSH = """\
autoload -U compinit; compinit -u -D; source {script}
PROMPT=; bindkey '^I' complete-word; unsetopt zle_bracketed_paste
show() {{ print -r -- "$BUFFER" > {answer}; exit }}
zle -N show; bindkey '^X' show
precmd() {{ print > {ready} }}
"""


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"needs {shell}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    (work / "street.png").touch()
    return work


def completion(shell: str, folder: Path, capsys: Capture) -> Path:
    """The completion script of a shell, in a file beside the folder that names are completed in."""
    assert cli.main(["completion", shell]) == 0
    path = folder.parent / f"completion.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def in_bash(script: Path, line: str, folder: Path) -> list[str]:
    words = " ".join(f"'{word}'" for word in line.split(" "))
    program = (
        f". {script}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        '_intseg; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def in_fish(script: Path, line: str, folder: Path) -> list[str]:
    program = f"source {script}; complete -C '{line}'"
    environment = os.environ | {"HOME": str(folder.parent)}
    command = ["fish", "--no-config", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=True)
    assert done.stderr == ""
    return [found.split("\t")[0] for found in done.stdout.splitlines()]


def in_zsh(script: Path, line: str, folder: Path) -> list[str]:
    """zsh completes only in its line editor: type into one, press tab, and have it say what the line became."""
    answer, setup, ready = (folder.parent / name for name in ("answer", "setup.zsh", "ready"))
    setup.write_text(_ZSH.format(script=script, answer=answer, ready=ready))
    pid, terminal = pty.fork()
    if pid == 0:  # the child
        os.chdir(folder)
        os.environ.update(TERM="dumb", HOME=str(folder.parent))
        os.execvp("zsh", ["zsh", "-f", "-i"])
    try:
        os.write(terminal, f". {setup}\n".encode())
        _until(ready.exists, terminal)
        os.write(terminal, f"{line}\t\x18".encode())
        _until(lambda: answer.exists() and answer.stat().st_size > 0, terminal)
    finally:
        os.close(terminal)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return answer.read_text().split()[len(line.split(" ")) - 1 :]


def _until(happened: Callable[[], bool], terminal: int) -> None:
    """Wait, reading what the shell prints, which would else fill the terminal's buffer."""
    os.set_blocking(terminal, False)
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, "zsh did not answer"
        try:
            os.read(terminal, 65536)
        except BlockingIOError:
            time.sleep(0.02)


@needs("bash")
@pytest.mark.parametrize(("line", "found"), [*_LINES, *_SEVERAL])
def test_bash(line: str, found: list[str], folder: Path, capsys: Capture) -> None:
    assert in_bash(completion("bash", folder, capsys), line, folder) == found


@needs("fish")
@pytest.mark.parametrize(("line", "found"), _LINES)
def test_fish(line: str, found: list[str], folder: Path, capsys: Capture) -> None:
    assert in_fish(completion("fish", folder, capsys), line, folder) == found


@needs("zsh")
@pytest.mark.parametrize(("line", "found"), _LINES)
def test_zsh(line: str, found: list[str], folder: Path, capsys: Capture) -> None:
    assert in_zsh(completion("zsh", folder, capsys), line, folder) == found
