"""SPEC.md is executed: doctests, constants re-derived, one section per op, tables equal to OPS."""

from __future__ import annotations

import doctest
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import random_graphs
from graphs import tiny, with_info

import intseg.graph
import intseg.store
from intseg import arith
from intseg.ops import OPS, _op
from intseg.ops.gelu import times_1_6875
from intseg.prove import prove

SPEC = (Path(__file__).parent.parent / "SPEC.md").read_text(encoding="utf-8")
SECTIONS = {
    match[2]: (int(match[1]), match[3])
    for match in re.finditer(r"^### 4\.(\d+) (\w+)\n(.*?)(?=^##)", SPEC, re.MULTILINE | re.DOTALL)
}
"""Op -> (number, text)."""


def table(op: str) -> list[list[str]]:
    """Rows [name, kind, dtype, shape, range, scale] of an op's operand table."""
    lines = [line for line in SECTIONS[op][1].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.count("|") == 7]


def rows(op: str, kind: str) -> list[list[str]]:
    return [row for row in table(op) if row[1].split(",")[0] == kind]


def test_doctests():
    test = doctest.DocTestParser().get_doctest(SPEC, {}, "SPEC.md", "SPEC.md", 0)
    assert len(test.examples) > 40
    report: list[str] = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert not report, "".join(report)


def test_every_op_has_a_section_in_the_order_of_the_list():
    assert [(name, number) for name, (number, _) in SECTIONS.items()] == [(name, i) for i, name in enumerate(OPS, 1)]


ROOT = Path(__file__).parent.parent
NUMBERS = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?) ", SPEC, re.MULTILINE))
CITED = re.compile(r"SPEC(?:\.md)?,?(?: sections?)? ((?:\d+(?:\.\d+)?(?:, | and | to |; )?)+)")
"""SPEC 2.1; SPEC.md, section 7; SPEC 4.5, 4.12; SPEC 4.9 to 4.11."""


TELL_OF_OTHERS = ("CHANGELOG.md", "test_add_an_op.py")
"""Of earlier sections, and of that of an op which is only made for the test."""


def test_every_section_cited_anywhere_exists():
    files = [
        p for folder in ("intseg", "kernels", "tools", "tests", "docs", "golden") for p in (ROOT / folder).rglob("*")
    ]
    found = 0
    for path in (*files, *ROOT.glob("*.md"), *ROOT.glob(".github/**/*")):
        if path.suffix in (".py", ".md", ".c", ".h", ".yml", ".sv", ".v", ".toml") and path.name not in TELL_OF_OTHERS:
            text = re.sub(r"\s+#?\s*", " ", path.read_text(encoding="utf-8"))
            for numbers in CITED.findall(text):
                for number in re.findall(r"\d+(?:\.\d+)?", numbers):
                    assert number in NUMBERS, f"{path} cites SPEC {numbers}"
                    found += 1
    assert found > 150


def test_every_section_cited_in_the_text_exists():
    for number in re.findall(r"(?i)\bsections? (\d+(?:\.\d+)?)", re.sub(r"\s+", " ", SPEC)):
        assert number in NUMBERS, f"cites section {number}"


def test_definitions_are_not_interrupted_by_errors():
    """What integers lose stands in section 11 alone, a part for each op that has any, by its name and number."""
    normative, informative = SPEC.split("\n## 9 ")[0], SPEC.split("\n## 11 ")[1]
    assert not re.findall(r"^Error", normative, re.MULTILINE)
    for name, number in re.findall(r"^### 11\.\d+ (\w+) \((\d\.\d+)\)$", informative, re.MULTILINE):
        assert f"\n### {number} {name}" in normative
    assert len(re.findall(r"^### 11\.", informative, re.MULTILINE)) == 11


def test_every_register_that_prove_prints_is_defined():
    """And every one that is defined is printed, with its star or without."""
    stated: dict[tuple[str, str], bool] = {}
    for ops, registers in re.findall(
        r"^\| ([\w, ]+) \| ((?:`\w+`(?: \*)?(?:, )?)+) \|", SPEC.split("\n## 10 ")[1], re.MULTILINE
    ):
        for name, star in re.findall(r"`(\w+)`( \*)?", registers):
            stated |= {(op, name): bool(star) for op in ops.split(", ")}
    graphs = [case.graph for case in random_graphs.cases(40, 40)]
    graphs += [tiny(), *(with_info(tiny(), upsample="bilinear", merge=merge) for merge in ("grid", "pixel"))]
    printed: dict[tuple[str, str], bool] = {}
    for graph in graphs:
        for proof in prove(graph):
            printed |= {
                (proof.op if r.name != "result" else "all that compute", r.name): r.extra for r in proof.registers
            }
    assert printed == stated


@pytest.mark.parametrize("op", OPS)
def test_attributes_equal_the_table(op: str):
    stated = {row[0].strip("`"): (row[2], row[4]) for row in rows(op, "attr")}
    expected = {
        name: ("int", f"[{allowed[0]}, {allowed[-1]}]")
        if isinstance(allowed, range)
        else ("string", ", ".join(f"`{word}`" for word in allowed))
        for name, allowed in OPS[op].attrs.items()
    }
    assert stated == expected
    assert tuple(row[0].strip("`") for row in rows(op, "attr") if "if absent" in row[1]) == OPS[op].optional


@pytest.mark.parametrize("op", OPS)
def test_operands_equal_the_table(op: str):
    assert [tuple(row[2].split(" or ")) for row in rows(op, "input")] == list(OPS[op].inputs)
    assert {row[0].strip("`"): row[2] for row in rows(op, "param")} == dict(OPS[op].params)
    assert len(rows(op, "output")) == 1


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_worked_example(op: str):
    assert f'>>> RUN["{op}"](' in SECTIONS[op][1]


def test_ranges_of_the_limits():
    assert range(1, 63) == _op.SHIFT
    assert range(2**31) == _op.MULT
    assert _op.MAX_DIM == intseg.graph.MAX_CLASSES == 65535
    assert 65535 * 2**15 == 2147450880 < 2**31
    assert _op.ACC_LIMIT == 2**31
    assert intseg.store.MAX_HEADER == 2**24
    assert intseg.store.MAX_FILE == 2**32
    assert intseg.store.MAX_RANK == 4
    assert intseg.store.MAX_TENSORS == 2**15
    assert intseg.graph.MAX_NODES == 4096
    assert intseg.graph.MAX_ELEMENTS == 2**30
    assert intseg.graph.MAX_WORK == 2**44
    assert (intseg.graph.MAX_TEXT, intseg.graph.MAX_SOURCE) == (1000, 100_000)
    assert intseg.store.FORMAT == 1
    assert set(intseg.store.DTYPES) == set(re.findall(r"\b[IU]\d+\b", SPEC.split("D is ")[1].split("(")[0]))
    assert f"`{intseg.store.NAME.pattern}`" in SPEC


def binary(text: str) -> Fraction:
    whole, part = text.split(".")
    return int(whole) + Fraction(int(part, 2), 2 ** len(part))


def test_constants_of_the_shifts():
    assert binary("1.1011") == Fraction(16875, 10000) == 1 + Fraction(1, 2) + Fraction(1, 8) + Fraction(1, 16)
    assert binary("1.0111") == Fraction(14375, 10000) == 1 + Fraction(1, 2) - Fraction(1, 16)
    assert times_1_6875(arith.EXACT, np.array([16, -16])).tolist() == [27, -27]
    assert (
        int(arith.shift_exp(np.int64(-16), 16, 11, 1)) == (16 - 7 // 2 - 1) << 10
    )  # I_e = -23: q = 1, r = 7, -7 >> 1 = -4
    assert abs(1.4375 - math.log2(math.e)) < 0.0053
    extremes = times_1_6875(arith.EXACT, np.array([-128, 127]))
    assert extremes.tolist() == [-216, 212]


def test_constants_of_softmax2():
    a = Fraction(67, 100)
    a1, a2 = (math.floor(value * 2**15 + Fraction(1, 2)) for value in (a, a - Fraction(1, 2)))
    assert (a1, a2) == (21955, 5571)
    assert a1 - a2 == 2**14
    (low,) = (op.attrs["a1"] for op in OPS.values() if "a1" in op.attrs)
    assert (low[0], low[-1]) == (2**14, 2**15 - 1)
    assert (32767 + 2**15) >> 16 == 0


def test_softmax2_power_stays_in_range_at_all_coefficients():
    """slope >= 1 and power in [1, 32767] at the corners and at random coefficients, for every f."""
    f = np.arange(2**15)
    source = np.random.default_rng(0)
    pairs = [(2**14, 0), (2**14, 2**14 - 1), (2**15 - 1, 0), (2**15 - 1, 2**14 - 1)]
    pairs += [(int(source.integers(2**14, 2**15)), int(source.integers(2**14))) for _ in range(40)]
    for a1, a2 in pairs:
        slope = a1 - ((a2 * f) >> 15)
        power = 32767 - ((f * slope) >> 15)
        assert slope.min() >= 1
        assert slope.max() <= 32767
        assert power.min() >= 1
        assert power.max() == 32767


def test_the_reciprocal_fits_16_bits():
    assert (2**46 - 1) // 2**30 == 2**16 - 1
    assert 2**46 // 2**30 == 2**16
    assert (2**46 - 1) // (2**31 - 1) == 2**15


def test_the_reciprocal_differs_from_that_of_2_to_46_only_at_2_to_30():
    """They differ where d divides 2^46, and 2^30 is the only power of two in [2^30, 2^31)."""
    divisors = np.append(np.random.default_rng(0).integers(2**30, 2**31, 10000), [2**30, 2**30 + 1, 2**31 - 1])
    assert divisors[(2**46 - 1) // divisors != 2**46 // divisors].tolist() == [2**30]


def test_window_counts_are_at_most_three():
    for window in range(1, 13):
        for stride in range((window + 1) // 2, window + 1):
            for size in range(window, 5 * window):
                starts = [*range(0, size - window, stride), size - window]
                counts = [sum(s <= y < s + window for s in starts) for y in range(size)]
                assert 1 <= min(counts) <= max(counts) <= 3
    assert math.lcm(1, 2, 3) == 6
    assert 2**15 * 36 < 2**21
