"""Table 1: the integer GELU and softmax against float."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from intseg.tools.measure.tables.markdown import command, prose, significant, table
from intseg.tools.measure.tables.results import MISSING, RECIPES, Document, Results, miou, same


def of_gelu(errors: Mapping[str, Document], variant: str) -> str:
    """`rmse` as a cell; a dash where a file is older than the variant."""
    return significant(rmse(errors, variant)) if all(variant in entry["rmse"] for entry in errors.values()) else "-"


def rmse(errors: Mapping[str, Document], variant: str) -> float:
    """Of all blocks together (eq. 15)."""
    squares = sum(entry["rmse"][variant] ** 2 * entry["elements"] for entry in errors.values())
    return math.sqrt(squares / sum(entry["elements"] for entry in errors.values()))


GELUS = ("ShiftGELU", "lambda-ShiftGELU", "aligned", "sigmoid GELU", "table", "table, fitted ranges")
SOFTMAXES = ("Shiftmax", "Shiftmax, normalized division", "softmax2", "exp_weights")


def table_1(results: Results) -> Iterator[str]:
    """Errors of the integer operators."""
    yield "## Table 1: the integer GELU and softmax against float"
    yield ""
    yield from command(results.commands("activations"))
    yield from prose("""
        Root mean square of (integer operator - float operator), eq. 15, in units of the activation; both get the float
        model's own inputs, the integer one quantized to INT8 with the ranges of `paper` from one image, the last column
        with those of `intseg`. `table` is the exact GELU on the same quantized input: what remains is quantization.
        lambda is 1 for ShiftGELU, 6 for lambda-ShiftGELU, for the same with aligned exponentials and for the sigmoid.
    """)
    rows = []
    for name, found in results.each("activations"):
        networks = {name: found["checkpoint"]}
        networks |= {f"{name}, tail x {factor}": errors for factor, errors in found["long-tailed"].items()}
        for title, errors in networks.items():
            largest = max(entry["largest_input"] for entry in errors["gelu"].values())
            values = [of_gelu(errors["gelu"], variant) for variant in GELUS]
            rows.append([title, f"{largest:.0f}", *values])
    yield from table(("network", "largest input", *GELUS), rows)
    yield from results.missing("activations")
    yield from _table_1_words(results)
    yield from _long_tail(results)
    yield from _softmax(results)


def _table_1_words(results: Results) -> Iterator[str]:
    yield "The paper has 4.52 against 4.35 for Tiny and 293.94 against 3.75 for Large (ADE20K), in units it"
    yield "does not state."
    for name, found in results.each("activations"):
        one, six, exact, fitted = (
            rmse(found["checkpoint"]["gelu"], variant)
            for variant in ("ShiftGELU", "lambda-ShiftGELU", "table", "table, fitted ranges")
        )
        yield f"On {name} lambda = 6 changes the error of lambda = 1 by {100 * (six / one - 1):+.0f} %, the exact table"
        yield f"that by {100 * (exact / six - 1):+.0f} %, fitted ranges that by {100 * (fitted / exact - 1):+.0f} %."
    yield from prose("""
        ShiftGELU and lambda-ShiftGELU compare every value with the largest of its row, and their exponentials of 23
        bits end about 10 below it. Beyond that, lambda = 1 clamps both exponentials and gives x / 2; lambda = 6 lets
        both vanish and gives 0, which is right for most negative values and wrong for the positive ones. The sigmoid
        and the table look at one value and have no such limit.
    """)


def _long_tail(results: Results) -> Iterator[str]:
    tailed = [(name, found) for name, found in results.each("activations") if found["long-tailed"]]
    if not tailed:
        return
    yield from prose(f"""
        The checkpoints trained from scratch have none of the long tails of pretrained ones, so they were constructed:
        *tail x 8* has one of 96 outputs of every `fc1` 8 times larger and the weights of `fc2` that read it 8 times
        smaller, which changes the float model little (its own prediction is the reference here). Post-training
        quantization from one image, measured on {tailed[0][1]["checkpoint"]["images"]} images, evenly spaced:
    """)
    rows = []
    for name, found in tailed:
        for factor, errors in found["long-tailed"].items():
            ways = errors["rows"]
            cells = [f"{miou(ways[way]):.2f} ({same(ways[way]):.1f} %)" if way in ways else "-" for way in RECIPES]
            rows.append([f"{name}, tail x {factor}", f"{miou(ways['float']):.2f}", *cells])
    yield from table(("network, mIoU % (equal to its float model)", "float", *RECIPES), rows)


def _measured(found: Document) -> list[str]:
    """The softmaxes that a file has errors of."""
    errors = found["checkpoint"]["softmax"].values()
    return [v for v in SOFTMAXES if all(v in entry["rmse"] for entry in errors)]


def _softmax(results: Results) -> Iterator[str]:
    found = dict(results.each("activations"))
    if not found:
        return
    yield from prose("""
        The softmax likewise: root mean square error of the probabilities times 10^5. The logits are INT16 in both. Per
        block, with the sums of rows: the appendix.
    """)
    heads = list(dict.fromkeys(variant for document in found.values() for variant in _measured(document)))
    rows = []
    for name, document in found.items():
        errors = document["checkpoint"]["softmax"]
        cells = [significant(1e5 * rmse(errors, v)) if v in _measured(document) else MISSING for v in heads]
        rows.append([name, *cells, f"{rmse(errors, 'Shiftmax') / rmse(errors, 'softmax2'):.0f}"])
    yield from table(("network", *heads, "softmax2: times smaller than Shiftmax"), rows)


def per_block(results: Results) -> Iterator[str]:
    """Table 1 block by block."""
    if results.found["activations"]:
        yield "## Appendix: table 1 per block"
        yield ""
    for name, found in results.each("activations"):
        errors = found["checkpoint"]["gelu"]
        rows = [
            [block, f"{entry['largest_input']:.1f}", *(of_gelu({block: entry}, variant) for variant in GELUS)]
            for block, entry in errors.items()
        ]
        yield f"GELU of {name}, on {found['checkpoint']['images']} images:"
        yield ""
        yield from table(("block", "largest input", *GELUS), rows)
    for name, found in results.each("activations"):
        yield f"Softmax of {name}: error times 10^5, and the mean sum of a row, which should be 1:"
        yield ""
        yield from _softmax_blocks(found)


def _softmax_blocks(found: Document) -> Iterator[str]:
    measured, rows = _measured(found), []
    for block, entry in found["checkpoint"]["softmax"].items():
        values = [significant(1e5 * entry["rmse"][variant]) for variant in measured]
        sums = [f"{entry['row_sum'][variant]:.4f}" for variant in measured]
        rows.append([block, f"{entry['largest_input']:.1f}", *values, *sums])
    yield from table(("block", "largest logit", *measured, *(f"row sum, {variant}" for variant in measured)), rows)
