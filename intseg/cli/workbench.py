"""The commands that hardware people come for: tensors, differences, vectors."""

from __future__ import annotations

import argparse
from pathlib import Path

from intseg import models
from intseg.cli.parser import (
    Command,
    Read,
    ReadHeld,
    WrittenFolder,
    add_weights,
    require_ending,
    require_writable,
    whole,
    written,
)
from intseg.cli.printing import Answer, count, say, size, wrote
from intseg.errors import MismatchError, UsageError

_TRACE = """\
Write every intermediate of an image into one safetensors file of integers (docs/WORKBENCH.md).

examples:
  intseg trace street.png -o t.safetensors
  intseg trace street.png --registers -o t.safetensors    the inside of the ops
  intseg trace street.png --nodes '*.blocks.0.*' -o t.safetensors
"""


def _trace_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Read, metavar="IMAGE", help="image, any size")
    add_weights(parser)
    trace = written(".safetensors")
    parser.add_argument("-o", "--output", required=True, type=trace, metavar="FILE", help="trace file (.safetensors)")
    parser.add_argument("--nodes", default="*", metavar="PATTERN", help="names with * and ?, and commas (all)")
    parser.add_argument("--registers", action="store_true", help="accumulators, products, sums, ... too")


def _trace(args: argparse.Namespace) -> Answer:
    from intseg import api
    from intseg.workbench import trace as traces

    model = api.load(args.weights)
    found = traces.write(args.output, args.image, model, args.nodes, args.registers, args.backend)
    for note in found.notes:
        say(f"note: {args.image}: {note}")
    sizes = f"{count(found.windows, 'window')}, {count(found.tensors, 'tensor')}, {size(found.size)}"
    facts = {"windows": found.windows, "tensors": found.tensors, "bytes": found.size, "notes": list(found.notes)}
    return wrote(args.output, sizes, **facts)


_DUMP = """\
Write the tensors of a trace or a model for other tools, and read them back; or all that the bench of one node needs
(docs/WORKBENCH.md).

formats:
  npy, npz, json   whole elements
  bin              raw words
  hex, mem         text for $readmemh and $readmemb, one word a line
  coe, mif, ihex   memories of FPGAs: Xilinx, Quartus, Intel HEX
  c                C headers
  flat             a model as one file for firmware (golden/reader/README.md)

examples:
  intseg dump trace.safetensors --format hex -o rtl/
  intseg dump camvid-tiny --format mem --tensors '*.qkv.*' --tile 8x8 -o rtl/
  intseg dump street.png --node encoder.blocks.0.attn.softmax --case case/
  intseg dump --read rtl/ -o trace.safetensors
"""


def _dump_arguments(parser: argparse.ArgumentParser) -> None:
    text = "trace or model; with --case an image or a trace"
    parser.add_argument("source", nargs="?", type=Read, metavar="SRC", help=text)
    parser.add_argument("--format", default="npy", metavar="F", help="see above (npy)")
    text = "new folder; a file with --read and for flat"
    parser.add_argument("-o", "--output", type=WrittenFolder, metavar="DIR", help=text)
    parser.add_argument("--tensors", default="*", metavar="PATTERN", help="names with * and ?, and commas (all)")
    parser.add_argument(
        "--width", type=whole(1, 1024), default=0, metavar="BITS", help="of an element (that of its dtype)"
    )
    parser.add_argument("--per-word", type=whole(1, 1024), default=1, metavar="N", help="elements per word (1)")
    parser.add_argument("--endian", default="little", metavar="E", help="little or big (little)")
    parser.add_argument("--order", default="C", metavar="O", help="C, F, or axes such as 2,0,1 (C)")
    parser.add_argument("--tile", type=_tile, metavar="RxC", help="cut the last two axes into tiles")
    parser.add_argument("--read", type=ReadHeld, metavar="DIR", help="read a dumped folder instead, into the file -o")
    text = "new folder: inputs, parameters and result of --node"
    parser.add_argument("--case", type=WrittenFolder, metavar="DIR", help=text)
    parser.add_argument("--node", metavar="NAME", help="of --case")
    parser.add_argument("--window", type=whole(0, 2**31), default=0, metavar="I", help="of --case (0)")
    parser.add_argument("-w", "--weights", type=ReadHeld, metavar="W", help="model of --case (that of the trace)")


def _tile(text: str) -> tuple[int, int]:
    side = whole(1, 65535)
    rows, x, columns = text.partition("x")
    if not x:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a size such as 16x16")
    return side(rows), side(columns)


def _dump(args: argparse.Namespace) -> Answer:
    if (args.source is None) == (args.read is None):
        raise UsageError("give one of SRC and --read DIR; see intseg dump --help")
    if (args.output is None) == (args.case is None) or (args.node is None) != (args.case is None):
        raise UsageError("give -o, or --case DIR and --node NAME together; see intseg dump --help")
    if args.format == "flat":
        return _flat(args)
    from intseg.workbench import dump, sides
    from intseg.workbench.case import write_case

    options = dump.Options(args.width, args.per_word, args.endian, args.order, args.tile)
    if args.read is not None:
        require_ending(args.output, ".safetensors")
        tensors = dump.read_folder(args.read, args.output)
    elif args.case is not None:
        golden = sides.open_golden(args.source, args.weights)
        tensors = write_case(golden, args.node, args.window, args.case, args.format, options)
    else:
        source = models.path(args.source) if args.source in models.names() else args.source
        tensors = dump.write_folder(source, args.output, args.format, options, args.tensors)
    return wrote(args.output or args.case, count(tensors, "tensor"), tensors=tensors)


def _flat(args: argparse.Namespace) -> Answer:
    from intseg.conformance import flat

    if args.read or args.case:
        raise UsageError("format flat is for a whole model: give a weights file and -o FILE")
    path = require_ending(args.output, ".flat", ".bin")
    require_writable(Path(path))
    size = flat.write(args.source, path)
    return wrote(path, f"{size:,} bytes", bytes=size)


_DIFF = """\
Find the first wrong bit and say why: nodes are compared in execution order, and the first one that differs is
recomputed from the golden inputs under the usual mistakes (docs/WORKBENCH.md). Exit code 1 when something differs.

GOLDEN is a trace, or an image to trace now. OTHER is a trace, a folder of intseg dump, a folder of hex, mem, bin,
coe, mif or npy files named like their nodes, an npz, or one such file.

examples:
  intseg diff golden.safetensors mine.safetensors
  intseg diff street.png rtl_out/ -w model.safetensors --html report.html
  intseg diff golden.safetensors s.npy --node encoder.blocks.0.attn.scores
  intseg diff street.png rtl_out/ --minimize case.safetensors
"""


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("golden", type=ReadHeld, metavar="GOLDEN", help="trace, or image to trace now")
    parser.add_argument("other", type=ReadHeld, metavar="OTHER", help="what another implementation gave")
    text = "model; default: that of GOLDEN"
    parser.add_argument("-w", "--weights", type=ReadHeld, metavar="W", help=text)
    parser.add_argument("--lsb", type=whole(0, 2**32), default=0, metavar="N", help="tolerate differences up to N (0)")
    parser.add_argument("--partial", action="store_true", help="a trace or a manifest may lack nodes")
    parser.add_argument("--node", metavar="NAME", help="OTHER is one tensor: the output of this node")
    parser.add_argument("--window", type=whole(0, 2**31), default=0, metavar="I", help="of --node (0)")
    bits = whole(1, 64)
    parser.add_argument("--width", type=bits, default=0, metavar="BITS", help="of words without a manifest")
    parser.add_argument("--unsigned", action="store_true", help="they are filled up with zeros, not signs")
    parser.add_argument(
        "--seconds", type=whole(1, 10**6), default=20, metavar="S", help="of processor time to search the cause (20)"
    )
    case, text = written(".safetensors"), "write the smallest call that still differs"
    parser.add_argument("-o", "--minimize", type=case, metavar="FILE", help=text)
    parser.add_argument(
        "--html", type=written(".html", ".htm"), metavar="FILE", help="write a report that opens offline"
    )


def _diff(args: argparse.Namespace) -> Answer:
    from intseg import store
    from intseg.reports import diff_page, diff_text, diff_view
    from intseg.workbench import diff, minimize, sides

    golden = sides.open_golden(args.golden, args.weights)
    words = sides.Words(args.width, args.unsigned)
    other = sides.open_other(args.other, golden, args.node, args.window, words)
    settings = diff.Settings(args.lsb, args.seconds, args.partial)
    minimal = None
    if args.minimize:
        report, minimal = minimize.minimize(golden, other, settings)
    else:
        report = diff.compare(golden, other, settings)
    if args.html:
        view = diff_view.view(report, golden, other, args.lsb)
        page = diff_page.page(report, view, args.golden, args.other)
        store.write_atomically(Path(args.html), page.encode())
    lines, document = list(diff_text.lines(report)), diff_text.as_json(report)
    if minimal is not None:
        minimize.save(minimal, args.minimize)
        lines += [*minimize.lines(minimal), f"wrote {args.minimize}"]
        document |= {"written": args.minimize}
    return Answer(lines, document, 0 if report.equal else MismatchError.exit_code)


TRACE = Command("trace", "write every intermediate of an image", _TRACE, _trace_arguments, _trace)
DIFF = Command("diff", "find the first wrong bit and its cause", _DIFF, _diff_arguments, _diff)
DUMP = Command("dump", "write tensors for RTL, C and other tools", _DUMP, _dump_arguments, _dump)
