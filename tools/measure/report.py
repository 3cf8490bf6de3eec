"""Write docs/RESULTS.md and its pictures from the files that experiments.py and bench.py wrote.

    python tools/measure/report.py              write
    python tools/measure/report.py --check      compare; exit code 1 and the names of what differs

Every number comes from docs/results/*.json; what is not there is named as not measured. Numbers of the paper, for
comparison, are called so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from intseg.errors import InputError
from intseg.files import write_atomically
from intseg.tools.make_docs import DOCS
from intseg.tools.measure.tables.activations import per_block, table_1
from intseg.tools.measure.tables.bits import bit_section
from intseg.tools.measure.tables.choices import calibration, simplifications, table_2
from intseg.tools.measure.tables.classify import classification
from intseg.tools.measure.tables.confusion import figure_section, figures
from intseg.tools.measure.tables.lam import lambda_table
from intseg.tools.measure.tables.markdown import filled, prose, table
from intseg.tools.measure.tables.opening import opening
from intseg.tools.measure.tables.quantized import table_3, table_5
from intseg.tools.measure.tables.results import KNOWN, Results
from intseg.tools.measure.tables.sizes import table_6, table_7


def introduction(results: Results) -> Iterator[str]:
    """What was measured, with what."""
    yield "## What was measured"
    yield ""
    yield from prose("""
        The tables of the I-Segmenter paper, measured with this engine. Written by `python tools/measure/report.py`
        from `docs/results/*.json`, which `tools/measure/experiments.py` and `tools/measure/bench.py` wrote; nothing
        here is typed by hand except the words and what is said to be the paper's. The paper measures ADE20K and
        Cityscapes on a GPU; here it is the CamVid validation set (or what a table says) on a CPU, so that differences
        between rows can be compared with the paper's, not values.

        `python tools/measure/experiments.py all --root CamVid --checkpoint tiny=DIR --qat tiny:intseg=FILE` measures
        everything again that is not up to date. How the checkpoints and the QAT models were made: CONTRIBUTING.md.
    """)
    rows = []
    for name in results.names:
        document = results.any(name)
        assert document is not None
        about = document["checkpoint"]
        blocks = f"{about['blocks']} + {about['decoder_blocks']}"
        window = " x ".join(str(n) for n in about["window"])
        sha256 = document["inputs"]["checkpoint_sha256"][:12]
        rows.append([name, KNOWN.get(name, ""), blocks, str(about["width"]), window, sha256])
    yield from table(("checkpoint", "", "encoder + decoder blocks", "width", "window", "sha256"), rows)
    some = next((document for name in results.names if (document := results.any(name))), None)
    if some:
        yield from prose(f"""
            {some["images"]} labelled images, void ignored; calibration takes images from the
            {some["training_images"]} of the training set, S of them evenly spaced. *Equal* is the share of all pixels,
            void included, that the float model (bilinear, L2 norm) labels the same; it runs as rstrudel/segmenter's
            `inference` does: the last window flush with the edge, each upsampled by itself, the mean of
            their scores. Recipes: `i-vit` is Shiftmax and ShiftGELU as published by I-ViT, `paper` has
            lambda-ShiftGELU instead, both with symmetric min/max ranges, nearest upsampling and without L2
            norm; `intseg` is this project's. Engine and fake-quant model give the same bits (tests/tools),
            so one number stands for both.
        """)


SECTIONS = (
    *(opening, introduction, table_3, bit_section, table_6, table_7, table_1, lambda_table, table_2, simplifications),
    *(calibration, table_5, classification, figure_section, per_block),
)


def pages(folder: Path) -> dict[str, str]:
    """Everything written, by its name under docs/."""
    results = Results(folder)
    lines = [line for section in SECTIONS for line in section(results)]
    found = {"RESULTS.md": "\n".join(filled(lines)).rstrip() + "\n"}
    return found | {f"pictures/{name}": drawing for name, drawing in figures(results).items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare; the exit code."""
    parser = argparse.ArgumentParser(prog="report.py", description="Write docs/RESULTS.md from docs/results/*.json.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of RESULTS.md, pictures/ and results/")
    args = parser.parse_args(argv)
    try:
        made = pages(args.docs / "results")
    except InputError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return error.exit_code
    wrong = 0
    for name in sorted({f"pictures/{file.name}" for file in (args.docs / "pictures").glob("results_*")} - set(made)):
        wrong += 1
        if args.check:
            print(f"{args.docs / name}: no result gives this picture; run python tools/measure/report.py")
        else:
            (args.docs / name).unlink()
    for name, content in made.items():
        path = args.docs / name
        if not args.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content.encode())
        elif not path.is_file() or path.read_text(encoding="utf-8") != content:
            print(f"{path}: is not what docs/results gives; run python tools/measure/report.py")
            wrong += 1
    return int(bool(wrong) and args.check)


if __name__ == "__main__":
    sys.exit(main())
