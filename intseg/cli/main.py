"""The command line: `intseg` or `python -m intseg.cli`."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import NoReturn

from intseg._version import __version__
from intseg.cli import conformance, convert, evaluate, exchange, infer, reports, training, workbench
from intseg.cli.parser import COMMAND, Command, Help, Parser, add_command, add_common
from intseg.cli.printing import Answer, complain, discard_stdout, flush, give, open_streams, say_warning
from intseg.errors import InputError, IntsegError, UsageError, missing_part, suggest
from intseg.progress import quietly

# NumPy and all that needs it is imported by the commands: --help and mistakes are answered at once

INTERNAL = 5
INTERRUPTED, TERMINATED = 130, 143
BROKEN_PIPE = 141

_DESCRIPTION = "Integer-only semantic segmentation, the same bits on every machine."
_EPILOG = """\
examples:
  intseg infer street.png
  intseg convert checkpoint.pth -o model.safetensors --calibrate photo.png
  intseg diff street.png rtl_out/ -w model.safetensors

exit codes:
  0 ok, 1 mismatch, 2 usage, 3 bad model, 4 bad input or IO, 5 internal error
"""

_ADVICE = {
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer --jobs",
    errno.ENFILE: "too many files are open on this machine; end other programs",
    errno.ENOMEM: "use a smaller image, or fewer --jobs",
    errno.EAGAIN: "too many processes or threads; use fewer --jobs or --threads",
}
_COMPLETION = """\
Print a script that completes commands, options and file names in a shell; needs the package shtab.

examples:
  source <(intseg completion bash)               in ~/.bashrc
  intseg completion zsh > ~/.zfunc/_intseg       a folder of $fpath
"""


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), metavar="SHELL", help="bash, zsh or tcsh")


def _completion(args: argparse.Namespace) -> Answer:
    try:
        import shtab
    except ImportError:
        raise UsageError("completion needs the package shtab: pip install 'intseg[completion]'") from None
    script = shtab.complete(parser(listed=True), args.shell)
    return Answer(script.splitlines(), script)


GROUPS: Mapping[str, tuple[Command, ...]] = {
    "run": (infer.INFER, evaluate.EVAL, reports.REPORT),
    "convert": (
        *(convert.CONVERT, training.TRAIN, training.QAT, training.COMPARE_FLOAT),
        *(reports.QUANT_REPORT, reports.CARD, exchange.EXPORT),
    ),
    "verify": (
        *(workbench.TRACE, workbench.DIFF, workbench.DUMP),
        *(conformance.VERIFY, conformance.VECTORS, conformance.TRUTH_TABLE),
    ),
    "understand": (reports.INSPECT, reports.PROFILE, reports.PROVE),
    "system": (
        reports.DOCTOR,
        Command("completion", "completion for your shell", _COMPLETION, _completion_arguments, _completion),
    ),
}
COMMANDS = tuple(command for group in GROUPS.values() for command in group)

ALIASES: Mapping[str, tuple[str, ...]] = {
    "predict": ("infer",),
    "evaluate": ("eval",),
    "help": (),
    "models": ("inspect", "--list"),
    "warmup": ("doctor", "--warm"),
    "flatten": ("dump", "--format", "flat"),
    "minimize": ("diff",),
    "version": ("--version",),
}
"""Other names, most of them earlier ones: what each stands for. The -o of `minimize` is that of `diff --minimize`."""


_SYNONYMS = {
    "infer": "segment segmentation run classify detect inference label mask overlay visualize apply demo",
    "eval": "validate val validation test accuracy miou score metrics",
    "profile": "benchmark bench time timing speed latency perf measure",
    "convert": "quantize quantise quant ptq calibrate import",
    "quant-report": "sensitivity errors",
    "diff": "compare debug",
    "verify": "check selftest self-test conformance replay",
    "vectors": "golden testbench pack",
    "inspect": "info show summary summarize describe list ls print graph",
    "export": "onnx tosa save",
    "report": "html page gallery",
    "card": "model-card hub publish",
    "train": "fit finetune fine-tune",
    "qat": "quantization-aware-training",
    "prove": "bounds overflow certify certificate",
    "dump": "hex coe mif rtl tensors weights",
    "trace": "activations intermediates features",
    "doctor": "env environment system status setup install cache",
}
"""What other programs call a command."""

_ENDINGS = {
    "infer": ".png .jpg .jpeg .webp .bmp .tif .tiff",
    "inspect": ".safetensors",
    "convert": ".pth .pt .ckpt .onnx",
}
"""Of files that are given where a command is expected."""

_WORDS = (*_SYNONYMS.items(), *_ENDINGS.items())


def parser(listed: bool = False, only: str = "") -> Parser:
    """The parser of everything.

    listed  whether argparse sees the list of commands too, which the help shows by task
    only    a command: the others have a name and no options, which takes a quarter of the time
    """
    groups = "\n\n".join(
        "\n".join([name, *(f"  {command.name:14}{command.summary}" for command in group)])
        for name, group in GROUPS.items()
    )
    made = Parser("intseg", description=f"{_DESCRIPTION}\n\n{groups}", epilog=_EPILOG, formatter_class=Help)
    made.hidden = ALIASES
    made.words = {word: name for name, words in _WORDS for word in words.split()}
    made.usage = f"intseg {COMMAND} [options]"
    made.add_argument("--version", action="version", version=f"intseg {__version__}")
    add_common(made, False)
    made.set_defaults(run=lambda args: Answer(made.format_help().splitlines()), parser=made)
    subparsers = made.add_subparsers(metavar=COMMAND, help=None if listed else argparse.SUPPRESS, prog="intseg")
    for command in COMMANDS:
        if only in ("", command.name):
            add_command(subparsers, command)
        else:
            subparsers.add_parser(command.name, add_help=False)
    return made


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; images may stand between options. Raises UsageError, with a suggestion for an unknown option."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), None)
    if at is not None:
        words += ["--help"] * (words[at] == "help")  # of the command behind it, if there is one
        words[at : at + 1] = ALIASES.get(words[at], (words[at],))
    first = next((word for word in words if not word.startswith("-")), "")
    only = first if first in [command.name for command in COMMANDS] else ""
    args, extra = parser(only=only).parse_known_args(words)
    options = [word for word in extra if word.startswith("-") and word != "-"]
    if options or (extra and not hasattr(args, "sources")):
        known = [option for action in args.parser._actions for option in action.option_strings]
        hint = suggest(options[0].partition("=")[0], known) if options else ""
        args.parser.error(f"unrecognized arguments: {' '.join(extra)}{hint}")
    if extra:
        args.sources += extra
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; every failure is one line on standard error."""
    with warnings.catch_warnings():
        warnings.showwarning = say_warning
        try:
            open_streams()
            args = _parse(argv)
            with quietly(args.quiet), _ended_in_order():
                code = give(args.run(args), args.json)
            flush()
            return code
        except Exception as error:
            if os.environ.get("INTSEG_DEBUG") == "1":
                traceback.print_exc()
            return _explain(error)
        except Terminated:
            complain("intseg: ended by SIGTERM")
            return TERMINATED
        except KeyboardInterrupt:
            complain("intseg: interrupted")
            return INTERRUPTED


class Terminated(KeyboardInterrupt):
    """SIGTERM: temporaries are removed and worker processes ended, as when a user interrupts."""


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated, where nobody else has a use for it."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the clearing up
        raise Terminated

    free = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    before = signal.signal(signal.SIGTERM, end) if free else None
    try:
        yield
    finally:
        if free:
            signal.signal(signal.SIGTERM, before)


def _explain(error: Exception) -> int:
    """Say in one line what went wrong; the exit code."""
    if isinstance(error, BrokenPipeError):
        discard_stdout()
        return BROKEN_PIPE
    text = " ".join(str(error).split())
    if isinstance(error, IntsegError):
        complain(f"intseg: {text}")
        return error.exit_code
    if isinstance(error, ImportError) and (advice := missing_part(error)):
        complain(f"intseg: {advice}")
        return UsageError.exit_code
    if isinstance(error, MemoryError):
        complain(f"intseg: out of memory ({text}); use a smaller image or a smaller model")
        return InputError.exit_code
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        complain(f"intseg: {error.strerror or text}{where}; {_ADVICE.get(error.errno or 0, 'check the path')}")
        return InputError.exit_code
    complain(f"intseg: internal error, {type(error).__name__}: {text}; please report it (INTSEG_DEBUG=1 shows where)")
    return INTERNAL


if __name__ == "__main__":
    sys.exit(main())
