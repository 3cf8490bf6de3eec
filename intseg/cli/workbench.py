"""The commands that hardware people come for: tensors, differences, vectors."""

from __future__ import annotations

import argparse
from pathlib import Path

from intseg import models
from intseg.cli import exchange
from intseg.cli.parser import (
    BACKENDS,
    Command,
    Read,
    ReadHeld,
    WrittenFolder,
    add_weights,
    require_ending,
    whole,
    written,
)
from intseg.cli.printing import Answer, count, say, wrote
from intseg.errors import MismatchError, UsageError

_TRACE = """\
Write every intermediate of an image into one safetensors file of integers (docs/WORKBENCH.md).

examples:
  intseg trace street.png -o trace.safetensors
  intseg trace street.png --registers -o trace.safetensors            the inside of the ops too
  intseg trace street.png --nodes '*.blocks.0.*' -o trace.safetensors
"""


def _trace_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Read, metavar="IMAGE", help="PNG, JPEG, BMP, WEBP, TIFF, PPM or GIF, any size")
    add_weights(parser)
    trace = written(".safetensors")
    parser.add_argument("-o", "--output", required=True, type=trace, metavar="FILE", help="trace file (.safetensors)")
    parser.add_argument("--nodes", default="*", metavar="PATTERN", help="names with * and ?, joined by commas (all)")
    parser.add_argument("--registers", action="store_true", help="accumulators, products, q, r, sums, roots, ...")


def _trace(args: argparse.Namespace) -> Answer:
    from intseg import api
    from intseg.workbench import trace as traces

    model = api.load(args.weights)
    found = traces.write(args.output, args.image, model, args.nodes, args.registers, args.backend)
    for note in found.notes:
        say(f"note: {args.image}: {note}")
    sizes = f"{count(found.windows, 'window')}, {count(found.tensors, 'tensor')}, {found.size / 1e6:.1f} MB"
    facts = {"windows": found.windows, "tensors": found.tensors, "bytes": found.size, "notes": list(found.notes)}
    return wrote(args.output, sizes, **facts)


_DUMP = """\
Write the tensors of a trace or a model for other tools, and read them back (docs/WORKBENCH.md).

formats:
  npy, npz, json   whole elements
  bin              raw words
  hex, mem         text for $readmemh (hexadecimal) and $readmemb (binary), one word a line
  coe, c           memory initialization of FPGAs, C headers

examples:
  intseg dump trace.safetensors --format hex -o rtl/
  intseg dump model.safetensors --format mem --tensors '*.qkv.*' --per-word 8 --tile 8x8 -o rtl/
  intseg dump --read rtl/ -o trace.safetensors
"""


def _dump_arguments(parser: argparse.ArgumentParser) -> None:
    text = "safetensors file, or a bundled model"
    parser.add_argument("source", nargs="?", type=Read, metavar="TRACE_OR_MODEL", help=text)
    parser.add_argument("--format", default="npy", metavar="F", help="npy, npz, bin, hex, mem, coe, c or json (npy)")
    text = "new folder; with --read, the file (.safetensors)"
    parser.add_argument("-o", "--output", required=True, type=WrittenFolder, metavar="DIR", help=text)
    parser.add_argument("--tensors", default="*", metavar="PATTERN", help="names with * and ?, joined by commas (all)")
    parser.add_argument(
        "--width", type=whole(1, 1024), default=0, metavar="BITS", help="of an element (that of its dtype)"
    )
    parser.add_argument("--per-word", type=whole(1, 1024), default=1, metavar="N", help="elements per word (1)")
    parser.add_argument("--endian", default="little", metavar="E", help="little or big, of elements and bytes (little)")
    parser.add_argument("--order", default="C", metavar="O", help="C, F, or axes such as 2,0,1, the last the fastest")
    parser.add_argument("--tile", type=_tile, metavar="RxC", help="cut the last two axes into tiles, filled with zeros")
    parser.add_argument("--read", type=ReadHeld, metavar="DIR", help="read a dumped folder instead, into the file -o")


def _tile(text: str) -> tuple[int, int]:
    side = whole(1, 65535)
    rows, x, columns = text.partition("x")
    if not x:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a size such as 16x16")
    return side(rows), side(columns)


def _dump(args: argparse.Namespace) -> Answer:
    from intseg.workbench import dump

    if (args.source is None) == (args.read is None):
        raise UsageError("give one of TRACE_OR_MODEL and --read DIR; see intseg dump --help")
    if args.read is not None:
        require_ending(args.output, ".safetensors")
        tensors = dump.read_folder(args.read, args.output)
    else:
        source = models.path(args.source) if args.source in models.names() else args.source
        options = dump.Options(args.width, args.per_word, args.endian, args.order, args.tile)
        tensors = dump.write_folder(source, args.output, args.format, options, args.tensors)
    return wrote(args.output, count(tensors, "tensor"), tensors=tensors)


_FLATTEN = """\
Write a model as one flat file of integers, for firmware that maps it into memory: fixed records, tensors at multiples
of 64 bytes, no JSON (golden/reader/README.md describes every byte; golden/reader/reader.c runs it).

examples:
  intseg flatten camvid-tiny -o camvid-tiny.flat
  intseg flatten mymodel.safetensors -o model.flat
"""


def _flatten_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", type=ReadHeld, metavar="W", help="weights file or bundled model")
    text = "the flat file (.flat or .bin); replaced if it is there"
    parser.add_argument("-o", "--output", required=True, type=written(".flat", ".bin"), metavar="FILE", help=text)


def _flatten(args: argparse.Namespace) -> Answer:
    from intseg.conformance import flat

    size = flat.write(args.weights, args.output)
    return wrote(args.output, f"{size} bytes", bytes=size)


_DIFF = """\
Find the first wrong bit and say why: nodes are compared in execution order, and the first one that differs is
recomputed from the golden inputs under the usual mistakes (docs/WORKBENCH.md). Exit code 1 when something differs.

GOLDEN is a trace, or an image to trace now. OTHER is a trace, a folder of intseg dump or of npy files, an npz,
or one npy, hex, mem or bin file named like its node.

examples:
  intseg diff golden.safetensors mine.safetensors
  intseg diff street.png rtl_out/ -w model.safetensors --html report.html
  intseg diff golden.safetensors scores.npy --node encoder.blocks.0.attn.scores
"""


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("golden", type=ReadHeld, metavar="GOLDEN", help="trace, or image to trace now")
    parser.add_argument("other", type=ReadHeld, metavar="OTHER", help="what another implementation gave")
    text = "weights file or bundled model; default: that of GOLDEN"
    parser.add_argument("-w", "--weights", type=ReadHeld, metavar="W", help=text)
    parser.add_argument("--lsb", type=whole(0, 2**32), default=0, metavar="N", help="tolerate differences up to N (0)")
    parser.add_argument("--partial", action="store_true", help="OTHER may lack nodes: compare what is there")
    parser.add_argument("--node", metavar="NAME", help="OTHER is one tensor: the output of this node")
    parser.add_argument("--window", type=whole(0, 2**31), default=0, metavar="I", help="of --node (0)")
    parser.add_argument(
        "--seconds", type=whole(1, 10**6), default=20, metavar="S", help="time to search the cause (20)"
    )
    parser.add_argument(
        "--html", type=written(".html", ".htm"), metavar="FILE", help="write a report that opens offline"
    )


def _diff(args: argparse.Namespace) -> Answer:
    from intseg import store
    from intseg.reports import diff_page as diff_report
    from intseg.workbench import diff

    golden = diff.open_golden(args.golden, args.weights)
    other = diff.open_other(args.other, golden, args.node, args.window)
    report = diff.compare(golden, other, diff.Settings(args.lsb, args.seconds, args.partial))
    if args.html:
        page = diff_report.page(report, args.golden, args.other)
        store.write_atomically(Path(args.html), page.encode())
    return Answer(diff.lines(report), diff.as_json(report), 0 if report.equal else MismatchError.exit_code)


_MINIMIZE = """\
Compare as intseg diff does, and cut the first node that differs down to the smallest call of its op that still does.
It is written as a golden op case (golden/ops). Exit code 1 when something differs, 0 and no file otherwise.

examples:
  intseg minimize golden.safetensors mine.safetensors -o case.safetensors
  intseg minimize street.png mine.safetensors -w model.safetensors -o case.safetensors
"""


def _minimize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("golden", type=ReadHeld, metavar="GOLDEN", help="trace, or image to trace now")
    parser.add_argument("other", type=ReadHeld, metavar="OTHER", help="what another implementation gave")
    case = written(".safetensors")
    parser.add_argument("-o", "--output", required=True, type=case, metavar="FILE", help="the case (.safetensors)")
    text = "weights file or bundled model; default: that of GOLDEN"
    parser.add_argument("-w", "--weights", type=ReadHeld, metavar="W", help=text)
    parser.add_argument("--partial", action="store_true", help="OTHER may lack nodes: compare what is there")
    parser.add_argument(
        "--seconds", type=whole(1, 10**6), default=20, metavar="S", help="time to search the cause (20)"
    )


def _minimize(args: argparse.Namespace) -> Answer:
    from intseg.workbench import diff, minimize

    golden = diff.open_golden(args.golden, args.weights)
    other = diff.open_other(args.other, golden)
    settings = diff.Settings(seconds=args.seconds, partial=args.partial)
    report, minimal = minimize.minimize(golden, other, settings)
    if minimal is None:
        return Answer(diff.lines(report), diff.as_json(report))
    minimize.save(minimal, args.output)
    lines = [*minimize.lines(minimal), f"wrote {args.output}"]
    return Answer(lines, diff.as_json(report) | {"written": args.output}, MismatchError.exit_code)


_UNIT_OPTIONS = (
    *("i0", "k_inter", "lam", "low", "high", "mult", "shift", "out", "limit"),
    *("int_div_kind", "k_out", "frac_bits", "a1", "a2"),
)

_TRUTH_TABLE = """\
Every row of a unit with a small domain, by the definition: to verify hardware on all inputs.

  shift_exp      --i0 --k-inter --lam --low   x = low .. 0
  isqrt          --low --high                 around the square of every root low .. high
  requantize     --mult --shift --out --limit both sides of every step of the result, and ties
  gelu_table     -w W --node NAME             256 values of the first or a named node

Ops with few inputs have units too, which take their attributes (SPEC.md section 4): every value, or
every pair of a row maximum and a value, or every argument of their exponential. A name that is no
unit lists all.

examples:
  intseg truth-table shift_exp --i0 16 --k-inter 11 --lam 1 -o exp.csv
"""


def _truth_table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("unit", metavar="UNIT", help="a primitive, or the unit of an op")
    for name in _UNIT_OPTIONS:
        words = {"out": ("int8", "int16"), "int_div_kind": ("paper", "normalized")}.get(name)
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
    counts = f"{count(found['cases'], 'op case')}, {count(found['images'], 'image')}, {found['bytes'] / 1e6:.1f} MB"
    reached = f"{found['reached']} of {found['branches']} branches of SPEC.md reached, {found['by_model']} by the model"
    lines = [f"{args.output}: {counts}", reached, f"digest {found['digest']}"]
    return Answer(lines, {"written": args.output, **found})


_VERIFY = """\
Replay golden vectors on this machine, on every backend that is installed, and print one digest,
which is the same on every machine. DIR is a folder that intseg vectors wrote, or the golden folder
of a checkout. Without DIR: the golden folder of the checkout around the working folder, or else a
self-test of the installed package. With --onnx: an exported model in onnxruntime and in ONNX's own
evaluator, every node of it against the engine.
"""


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=ReadHeld, metavar="DIR", nargs="?", help="conformance pack or golden folder")
    parser.add_argument("--backend", choices=BACKENDS[1:], help="only this one; default: all that are installed")
    parser.add_argument("--onnx", type=Read, metavar="FILE", help="a model that intseg export wrote, instead of DIR")
    add_weights(parser, backend=False)
    parser.add_argument("--windows", type=whole(1, 1000), default=1, metavar="N", help="random windows for --onnx (1)")


def _verify(args: argparse.Namespace) -> Answer:
    from intseg import backends
    from intseg.conformance import verify

    if args.onnx is not None:
        return exchange.verify_onnx(args.onnx, args.weights, args.windows)
    names = (backends.resolve(args.backend),) if args.backend else ()
    folder = Path(args.folder) if args.folder is not None else verify.find_golden(Path.cwd())
    report = verify.verify(folder, names, say)
    for note in report.notes:
        say(f"note: {note}")
    counts = ", ".join(f"{number} {kind}" for kind, number in report.counts.items()) or "nothing"
    lines = [f"{report.source}: compared {counts} on {', '.join(report.backends)}", f"digest {report.digest}"]
    document = {**report.__dict__, "backends": list(report.backends), "ok": report.ok}
    if report.ok:
        return Answer([*lines, "ok: all equal"], document)
    differ = f"{count(report.failed, 'result')} differ, the first is {report.mismatch or 'missing'}"
    return Answer(lines, document, failure=MismatchError(differ))


COMMANDS = (
    Command("trace", "write every intermediate of an image", _TRACE, _trace_arguments, _trace),
    Command("dump", "write tensors for RTL, C and other tools", _DUMP, _dump_arguments, _dump),
    Command("flatten", "write a model for firmware", _FLATTEN, _flatten_arguments, _flatten),
    Command("diff", "find the first wrong bit and its cause", _DIFF, _diff_arguments, _diff),
    Command("minimize", "cut a difference down to one op call", _MINIMIZE, _minimize_arguments, _minimize),
    Command("truth-table", "every row of a small unit", _TRUTH_TABLE, _truth_table_arguments, _truth_table),
    Command("vectors", "write a conformance pack for a model", _VECTORS, _vectors_arguments, _vectors),
    Command("verify", "replay golden vectors on this machine", _VERIFY, _verify_arguments, _verify),
)
