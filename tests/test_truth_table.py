"""Truth tables: every row against the oracle, completeness of the sampled ones, files, and what is refused."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import naive
import numpy as np
import pytest
from compare import assert_equal
from graphs import SOFTMAX

from intseg import arith
from intseg.cli import conformance
from intseg.cli import main as cli
from intseg.conformance import truth_table
from intseg.conformance.truth_table import Table
from intseg.errors import InputError, UsageError
from intseg.ops import RUN

ROOT = Path(__file__).parent.parent
GELU = {"i0": 16, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 8, "mult": 1, "shift": 7}
GELUS = [
    GELU,
    GELU | {"int_div_kind": "paper", "k_out": 16, "shift": 15},
    GELU | {"i0": 8, "lam": 1, "mult": 2**31 - 1, "shift": 38},
]


def rows(table: Table) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in table.columns.values()), strict=True))


@pytest.mark.parametrize(("i0", "k", "lam"), [(16, 11, 1), (23, 23, 6), (1, 15, 1), (2**15, 0, 1), (5, 15, 64)])
def test_shift_exp(i0: int, k: int, lam: int):
    table = truth_table.shift_exp(i0, k, lam, -5000)
    assert [x for x, _ in rows(table)] == list(range(-5000, 1))
    assert all(result == naive.shift_exp(x, i0, k, lam) for x, result in rows(table))


def test_shift_exp_covers_every_operand_of_an_op():
    lowest = min(x for x, _ in rows(truth_table.shift_exp(16, 11, 1)))
    assert lowest == -32768 - 32767  # an INT16 logit below the largest; GELUs stay above -428


@pytest.mark.parametrize("attrs", GELUS)
def test_sigmoid_gelu(attrs: dict[str, int | str]):
    table = rows(truth_table.make("sigmoid_gelu", attrs))
    assert [x for x, _ in table] == list(range(-128, 128))
    assert [y for _, y in table] == naive.sigmoid_gelu([x for x, _ in table], **attrs)


@pytest.mark.parametrize("attrs", GELUS[:2])
def test_shift_gelu(attrs: dict[str, int | str]):
    table = rows(truth_table.make("shift_gelu", attrs))
    assert {(top, x) for top, x, _ in table} == {(top, x) for top in range(-128, 128) for x in range(-128, top + 1)}
    assert all(y == naive.shift_gelu([x, top], **attrs)[0] for top, x, y in table[::7])


def test_shift_gelu_gives_every_row_of_an_image():
    """Elements depend on the rest of their row by its maximum only."""
    table = {(top, x): y for top, x, y in rows(truth_table.make("shift_gelu", GELU))}
    x = np.random.default_rng(0).integers(-128, 100, (50, 9)).astype(np.int8)
    found = RUN["shift_gelu"](x, **GELU)
    assert [[table[int(line.max()), int(v)] for v in line] for line in x] == found.tolist()


def test_gelu_table():
    values = np.random.default_rng(0).integers(-128, 128, 256).astype(np.int8)
    assert [y for _, y in rows(truth_table.gelu_table(values))] == values.tolist()


def test_isqrt():
    table = dict(rows(truth_table.isqrt(0, 500)))
    assert set(table) == {v for r in range(501) for v in (r * r - 1, r * r, r * r + 1) if v >= 0}
    assert all(root == math.isqrt(v) for v, root in table.items())


def test_isqrt_at_the_upper_end():
    table = dict(rows(truth_table.isqrt(2**31 - 4, 2**31 - 1)))
    assert max(table) == (2**31 - 1) ** 2 + 1 < 2**62
    assert all(root == math.isqrt(v) for v, root in table.items())


SCALES = [(2**30, 38), (1518500250, 40), (3 << 20, 24), (1, 1), (2**31 - 1, 62), (2**31 - 1, 1), (0, 5), (1, 62)]


@pytest.mark.parametrize("out", ["int8", "int16"])
@pytest.mark.parametrize(("mult", "shift"), SCALES)
def test_requantize_determines_every_accumulator(mult: int, shift: int, out: str):
    """A result is that of the nearest row below: the table holds both sides of every step."""
    table = truth_table.requantize(mult, shift, out, limit=50)
    acc, result = (column.astype(np.int64) for column in table.columns.values())
    assert all(y == naive.requantize(x, mult, shift, out) for x, y in rows(table)[:: max(table.rows // 500, 1)])
    random = np.random.default_rng(0)
    probes = np.concatenate([random.integers(-(2**31) + 1, 2**31, 2000), random.integers(-(2**18), 2**18, 2000)])
    below = result[np.searchsorted(acc, probes, side="right") - 1]
    assert_equal(below.astype(out), arith.requantize(probes, mult, shift, out))


def test_requantize_holds_ties_on_both_sides():
    acc = [x for x, _ in rows(truth_table.requantize(3 << 20, 24, "int16"))]
    ties = [x for x in acc if (x * (3 << 20)) % 2**24 == 2**23]
    assert min(ties) < 0 < max(ties)
    assert {x + 1 for x in ties} <= set(acc)


@pytest.mark.parametrize(
    ("frac_bits", "a1", "a2"), [(8, 21955, 5571), (4, 16384, 0), (0, 16384, 16383), (11, 32767, 0)]
)
def test_exp2(frac_bits: int, a1: int, a2: int):
    """In a row (0, -t) the two probabilities are the quotients of e and 32767 by their sum."""
    table = truth_table.make("exp2", {"frac_bits": frac_bits, "a1": a1, "a2": a2})
    t, e = table.columns["t"][: 2**15], table.columns["e"][: 2**15].astype(np.int64)
    assert e[0] == 32767
    logits = np.stack([np.zeros_like(t), -t], axis=-1).astype(np.int16)
    found = RUN[SOFTMAX](logits, frac_bits=frac_bits, a1=a1, a2=a2)
    for column, n in ((0, np.full_like(e, 32767)), (1, e)):
        quotient = arith.saturate(arith.int_div(n, e + 32767, 16, "normalized"), "int16")
        assert_equal(found[:, column], quotient)
    assert table.columns["e"][-1] == 0


def test_units_and_options_agree():
    assert set(truth_table.UNITS) == set(truth_table.DEFAULTS)
    assert {name for options in truth_table.DEFAULTS.values() for name in options} == set(conformance._UNIT_OPTIONS)


def test_one_changed_value_changes_the_digest():
    table = truth_table.isqrt(0, 10)
    changed = {name: column.copy() for name, column in table.columns.items()}
    changed["result"][3] += 1
    assert Table(table.unit, table.params, changed).sha256 != table.sha256
    assert table.sha256 == truth_table.isqrt(0, 10).sha256


# Files


def test_npz_and_csv_read_back(tmp_path: Path):
    table = truth_table.make("sigmoid_gelu", GELU)
    (npz,) = truth_table.write(table, tmp_path / "t.npz", "npz")
    with np.load(io.BytesIO(npz.read_bytes())) as found:
        for name, column in table.columns.items():
            assert_equal(found[name], column, name)
    (csv,) = truth_table.write(table, tmp_path / "t.csv", "csv")
    head, *lines = csv.read_text().splitlines()
    assert head == "x,result"
    assert [tuple(map(int, line.split(","))) for line in lines] == rows(table)


def test_hex_is_twos_complement(tmp_path: Path):
    table = truth_table.make("sigmoid_gelu", GELU)
    files = truth_table.write(table, tmp_path / "t.hex", "hex")
    assert [path.name for path in files] == ["t.x.hex", "t.result.hex"]
    words = files[0].read_text().split()
    assert (words[0], words[127], words[128], words[255]) == ("80", "ff", "00", "7f")
    assert [int(word, 16) for word in files[1].read_text().split()] == [y % 256 for _, y in rows(table)]


@pytest.mark.parametrize("kind", truth_table.FORMATS)
def test_files_are_the_same_bytes(tmp_path: Path, kind: str):
    tables = [truth_table.encode(truth_table.isqrt(0, 50), kind) for _ in range(2)]
    assert tables[0] == tables[1]


def test_a_folder_in_the_way_leaves_nothing(tmp_path: Path):
    (tmp_path / "t.result.hex").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        truth_table.write(truth_table.isqrt(0, 5), tmp_path / "t.hex", "hex")
    assert [path.name for path in tmp_path.iterdir()] == ["t.result.hex"]


# Command line


@pytest.mark.parametrize("unit", list(truth_table.UNITS))
def test_command(unit: str, capsys: pytest.CaptureFixture[str]):
    weights = ["-w", str(ROOT / "golden" / "models" / "intseg.safetensors")] if unit == "gelu_table" else []
    assert cli.main(["truth-table", unit, "--json", *weights]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["unit"] == unit
    assert summary["rows"] > 200
    assert len(summary["sha256"]) == 64


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["sqrt"], 2, "unit 'sqrt' is unknown, expected shift_exp, isqrt,"),
        (["isqrt", "--i0", "3"], 2, "has no option i0"),
        (["isqrt", "--low", "9", "--high", "3"], 2, "high is 3"),
        (["isqrt", "--high", str(2**31 - 1)], 2, "number of roots"),
        (["isqrt", "-w", "x"], 2, "only gelu_table"),
        (["isqrt", "--low", str(-(2**63))], 2, "low is -9223372036854775808"),
        (["isqrt", "--low", str(-(2**63) - 1)], 2, "not a whole number from -9223372036854775808 to 92233"),
        (["shift_exp", "--i0", "0"], 2, "i0 is 0"),
        (["shift_exp", "--low", "5"], 2, "low is 5"),
        (["requantize", "--shift", "63"], 2, "shift is 63"),
        (["requantize", "--mult", "-1"], 2, "mult is -1"),
        (["sigmoid_gelu", "--k-out", "9"], 2, "expected 8 or 16"),
        (["shift_gelu", "--i0", "32768", "--k-inter", "31"], 2, "below 35184372088832"),
        (["exp2", "--a1", "1"], 2, "a1 is 1"),
        (["isqrt", "-o", "t.txt"], 2, "rename it"),
        (["isqrt", "-o", "no/t.csv"], 4, "no folder no"),
        (["gelu_table", "--node", "nothing"], 2, "has no gelu_table node 'nothing'"),
        (["gelu_table", "-w", "no.safetensors"], 4, "cannot read weights"),
        (["gelu_table", "-w", str(ROOT / "golden" / "models" / "paper.safetensors")], 2, "has no gelu_table node"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str],
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    if argv[0] == "gelu_table" and "-w" not in argv:
        argv = [*argv, "-w", str(ROOT / "golden" / "models" / "intseg.safetensors")]
    assert cli.main(["truth-table", *argv]) == code
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_unit_is_refused():
    with pytest.raises(UsageError, match="unknown"):
        truth_table.make("tan", {})
