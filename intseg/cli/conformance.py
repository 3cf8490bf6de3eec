"""The commands of conformance: truth tables, packs of vectors, and their replay."""

from __future__ import annotations

import argparse
from pathlib import Path

from intseg import models
from intseg.cli import exchange
from intseg.cli.parser import BACKENDS, Command, Read, ReadHeld, WrittenFolder, add_weights, whole, written
from intseg.cli.printing import Answer, count, say, size
from intseg.errors import MismatchError, UsageError

_UNIT_OPTIONS = (
    *("i0", "k_inter", "lam", "low", "high", "mult", "shift", "out", "limit"),
    *("int_div_kind", "k_out", "frac_bits", "a1", "a2"),
)

_TRUTH_TABLE = """\
Every row of a unit with a small domain, by the definition: to verify hardware on all inputs.

  shift_exp      --i0 --k-inter --lam --low   x = low .. 0
  isqrt          --low --high                 around squares of low .. high
  requantize     --mult --shift --out --limit both sides of steps, ties
  gelu_table     -w W --node NAME             256 values of a node (the first)

Ops with few inputs have units too, which take their attributes (SPEC.md section 4): every value, or
every pair of a row maximum and a value, or every argument of their exponential. A name that is no
unit lists all.

examples:
  intseg truth-table shift_exp --i0 16 --k-inter 11 --lam 1 -o exp.csv
"""


def _truth_table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("unit", metavar="UNIT", help="a primitive, or the unit of an op")
    for name in _UNIT_OPTIONS:
        words = {"out": ("int8", "int16"), "int_div_kind": ("paper", "normalized", "aligned")}.get(name)
        flag = f"--{name.replace('_', '-')}"
        if words:
            parser.add_argument(flag, dest=name, choices=words)
        else:
            parser.add_argument(flag, dest=name, type=whole(-(2**63), 2**63 - 1), metavar="N")
    text = f"gelu_table: weights file or model ({models.DEFAULT})"
    parser.add_argument("-w", "--weights", type=ReadHeld, metavar="W", help=text)
    parser.add_argument("--node", metavar="NAME", help="gelu_table: a node of the model")
    text, table = "NAME.npz, .csv or .hex (for $readmemh, a file a column)", written(".npz", ".csv", ".hex")
    parser.add_argument("-o", "--output", type=table, metavar="OUT", help=text)


def _truth_table(args: argparse.Namespace) -> Answer:
    from intseg import api
    from intseg.conformance import truth_table

    kind = Path(args.output).suffix[1:].lower() if args.output else None
    options = {name: getattr(args, name) for name in _UNIT_OPTIONS if getattr(args, name) is not None}
    if args.unit != "gelu_table" and (args.node or args.weights):
        raise UsageError(f"unit {args.unit} takes neither -w nor --node, only gelu_table does")
    if args.unit == "gelu_table" and not options:
        table = truth_table.model_gelu_table(api.load(args.weights).graph, args.node)
    else:
        table = truth_table.make(args.unit, options)
    made = truth_table.write(table, args.output, kind) if kind else []
    params = ", ".join(f"{name} {value}" for name, value in table.params.items())
    rows = f"{count(table.rows, 'row')} of {', '.join(table.columns)}"
    lines = [f"{table.unit}{f' ({params})' if params else ''}: {rows}", f"sha256 {table.sha256}"]
    lines += [f"wrote {path}" for path in made]
    return Answer(lines, table.as_json() | {"written": [str(path) for path in made]})


_VECTORS = """\
Write a conformance pack for a model: op cases that reach every branch of SPEC.md, corner-case
images, the expected results, a coverage report and runner.json, which says how to use it. The same
model gives the same bytes everywhere.

examples:
  intseg vectors -o pack
  intseg vectors -o pack -w mymodel.safetensors
  intseg verify pack
"""


def _vectors_arguments(parser: argparse.ArgumentParser) -> None:
    new = WrittenFolder
    parser.add_argument("-o", "--output", type=new, metavar="DIR", required=True, help="a new or empty folder")
    add_weights(parser)


def _vectors(args: argparse.Namespace) -> Answer:
    from intseg import api, backends
    from intseg.conformance import vectors

    vectors.require_new(Path(args.output))
    model = api.load(args.weights)
    backend = "numpy" if args.backend == "auto" else backends.resolve(args.backend)
    pack = vectors.make_pack(model, backend, say)
    vectors.write_pack(pack, args.output)
    found = vectors.summary(pack)
    counts = f"{count(found['cases'], 'op case')}, {count(found['images'], 'image')}, {size(found['bytes'])}"
    reached = f"{found['reached']} of {found['branches']} branches of SPEC.md reached, {found['by_model']} by the model"
    lines = [f"{args.output}: {counts}", reached, f"digest {found['digest']}"]
    return Answer(lines, {"written": args.output, **found})


_VERIFY = """\
Replay golden vectors on this machine, on every backend that is installed, and print one digest,
which is the same on every machine. DIR is a folder that intseg vectors wrote, or the golden folder
of a checkout. Without DIR: the golden folder of the checkout around the working folder, or else a
self-test of the installed package. With --onnx: an exported model in onnxruntime and in ONNX's own
evaluator, every node of it against the engine, on windows of noise, and with DIR on
those of its images.
"""


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=ReadHeld, metavar="DIR", nargs="?", help="conformance pack or golden folder")
    parser.add_argument("--backend", choices=BACKENDS[1:], help="only this one; default: all that are installed")
    parser.add_argument("--onnx", type=Read, metavar="FILE", help="a model that intseg export wrote")
    add_weights(parser, backend=False)
    parser.add_argument("--windows", type=whole(1, 1000), default=1, metavar="N", help="random windows for --onnx (1)")
    text = "processor time after which ONNX's own evaluator, which is slow, gets no more windows (90)"
    parser.add_argument("--seconds", type=whole(1, 10**6), default=90, metavar="S", help=text)


def _verify(args: argparse.Namespace) -> Answer:
    from intseg import backends
    from intseg.conformance import verify

    if args.onnx is not None:
        return exchange.verify_onnx(args.onnx, args.weights, args.windows, args.seconds, args.folder)
    names = (backends.resolve(args.backend),) if args.backend else ()
    folder = Path(args.folder) if args.folder is not None else verify.find_golden(Path.cwd())
    report = verify.verify(folder, names, say)
    for note in report.notes:
        say(f"note: {note}")
    kinds = ", ".join(f"{number:,} of {kind}" for kind, number in report.counts.items()) or "none"
    lines = [f"{report.source}: compared results, {kinds}, on {', '.join(report.backends)}", f"digest {report.digest}"]
    document = {**report.__dict__, "backends": list(report.backends), "ok": report.ok}
    if report.ok:
        return Answer([*lines, "ok: all equal"], document)
    differ = f"{count(report.failed, 'result')} differ, the first is {report.mismatch or 'missing'}"
    return Answer(lines, document, failure=MismatchError(differ))


TRUTH_TABLE = Command("truth-table", "every row of a small unit", _TRUTH_TABLE, _truth_table_arguments, _truth_table)
VECTORS = Command("vectors", "write a conformance pack for a model", _VECTORS, _vectors_arguments, _vectors)
VERIFY = Command("verify", "replay golden vectors on this machine", _VERIFY, _verify_arguments, _verify)
