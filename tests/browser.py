"""A headless Chromium over the DevTools protocol on a pipe: no driver, no socket, no package."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars --disable-dev-shm-usage --remote-debugging-pipe"""
TIMEOUT = 600

CONTRASTS = """
(() => {
  const light = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const found = numbers(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll("body *:not(script)")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.closest("title")) continue;
    const style = getComputedStyle(e);
    const ink = numbers(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(ground(e))].sort((x, y) => y - x);
    found.push([e.tagName, (a + 0.05) / (b + 0.05)]);
  }
  return found;
})()
"""
"""[tag, contrast to its ground] of every element with text."""

CUT = """
[...document.querySelectorAll(".number, .name, dd, .plot, .plot text, code")].filter(e => {
  const box = e.getBoundingClientRect(), plot = e.closest("svg")?.getBoundingClientRect();
  const [left, right] = plot ? [Math.max(0, plot.left), Math.min(innerWidth, plot.right)] : [0, innerWidth];
  return e.getClientRects().length && (box.right > right + 1 || box.left < left - 1);
}).map(e => e.textContent)
"""
"""Texts of numbers and drawings that reach beyond the window, or beyond the drawing they are in."""


@functools.cache
def find() -> str | None:
    """The browser's program, None where none starts: some systems have a script that asks to install it."""
    for program in filter(None, map(shutil.which, NAMES)):
        try:
            found = subprocess.run([program, "--version"], capture_output=True, timeout=TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if found.returncode == 0 and b"Chrom" in found.stdout:
            return program
    return None


class Browser:
    """One page of one browser, ended with the block it is used in."""

    def __init__(self) -> None:
        program = find()
        assert program is not None
        self.events: list[dict[str, Any]] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        ours, theirs = zip(*map(_high_pipe, (False, True)), strict=True)
        self._input, self._output = ours
        script = f'exec "$0" "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        command = [
            "bash",
            "-c",
            script,
            program,
            *FLAGS.split(),
            f"--user-data-dir={self._profile.name}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command, pass_fds=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        for descriptor in theirs:
            os.close(descriptor)
        self._left, self._count, self._session = b"", 0, None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._input)
        os.close(self._output)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._input, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._output], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._output, 1 << 20)
            assert data, "the browser ended"
            self._left += data
        message, self._left = self._left.split(b"\0", 1)
        return dict(json.loads(message))

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true; what it is then. Pages go on after they are loaded."""
        look = f"function look() {{ const found = {expression}; found ? done(found) : setTimeout(look, 10); }}"
        return self.evaluate(f"new Promise(done => {{ {look} look(); }})")

    def until_told(self, text: str) -> None:
        """Wait until a complaint holds this text."""
        while not any(text in complaint for complaint in self.complaints()):
            self.events.append(self._receive())

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            down = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **down)

    def theme(self, name: str) -> None:
        """Prefer "dark" or "light"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def width(self, pixels: int) -> None:
        """Make the window this wide."""
        self.call("Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=False)

    def complaints(self) -> list[str]:
        """Exceptions, entries of the log (a violated policy is one), messages of the console."""
        methods = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in methods]

    def requests(self) -> list[str]:
        """What was loaded since `open`, data URLs left out."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [entry["request"]["url"] for entry in sent if not entry["request"]["url"].startswith("data:")]


def _high_pipe(reading: bool) -> tuple[int, int]:
    """A pipe with numbers far from those the browser wants: (our end, its end)."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 60))
        os.close(end)
    return (ends[0], ends[1]) if reading else (ends[1], ends[0])
