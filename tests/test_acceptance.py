"""The checklist of SPEC.md, section 4, read from the text and run beside the loader's check: they accept the same."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from test_spec import SECTIONS, rows

from intseg.errors import ModelError
from intseg.exam import EXAMS, Numbers
from intseg.graph import check_call
from intseg.ops import OPS, Array, Attr, Value

DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "int64")
EDGES = (-(2**61), -(2**31), -1, 0, 1, 2, 8, 9, 16, 62, 63, 126, 127, 128, 2**14, 2**15, 2**15 + 1, 2**31 - 1, 2**31)


@dataclass(frozen=True)
class Call:
    """What a loader looks at."""

    inputs: tuple[Value, ...]
    params: Mapping[str, Array]
    attrs: Mapping[str, Any]


# ------------------------------------------------------------------------------------------- the checklist as code


def fits(shape: tuple[int, ...], text: str, known: dict[str, Any]) -> bool:
    """Whether a shape is "[..., M, 3]"; letters and the axes of "..." are bound where they are new."""
    words = text.strip("[]").split(", ")
    before = words.index("...") if "..." in words else len(words)
    after = len(words) - before - 1
    if "..." in words:
        if len(shape) < len(words) - 1:
            return False
        middle = shape[before : len(shape) - after]
        if known.setdefault("...", middle) != middle:
            return False
        words, shape = words[:before] + words[before + 1 :], shape[:before] + shape[len(shape) - after :]
    if len(words) != len(shape):
        return False
    return all(n == (int(w) if w.isdigit() else known.setdefault(w, n)) for w, n in zip(words, shape, strict=True))


def fits_any(shape: tuple[int, ...], text: str, known: dict[str, Any]) -> bool:
    """Of several forms, each for any value of the attributes or for one."""
    for form, name, value in re.findall(r"(\[[^\]]*\])(?: with (\w+) = (\d+))?", text):
        trial = dict(known)
        if (not name or known[name] == int(value)) and fits(shape, form, trial):
            known.update(trial)
            return True
    return False


def bounds(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"\[(-?\d+), (-?\d+)\]", text)
    return (int(found[1]), int(found[2])) if found else None


def attrs_fit(op: str, attrs: Mapping[str, Any]) -> bool:
    stated = {row[0].strip("`"): (row[2], row[4]) for row in rows(op, "attr")}
    optional = {row[0].strip("`") for row in rows(op, "attr") if "if absent" in row[1]}
    if not set(stated) - optional <= set(attrs) <= set(stated):
        return False
    for name, value in attrs.items():
        kind, text = stated[name]
        limits = bounds(text)
        if kind == "int":
            assert limits
            if type(value) is not int or not limits[0] <= value <= limits[1]:
                return False
        elif type(value) is not str or f"`{value}`" not in text.split(", "):
            return False
    return True


def operands_fit(op: str, call: Call, known: dict[str, Any]) -> bool:
    inputs = rows(op, "input")
    if len(inputs) != len(call.inputs):
        return False
    for row, value in zip(inputs, call.inputs, strict=True):
        known[row[0].strip("`")] = value
        if value.dtype not in row[2].split(" or ") or not value.shape or not all(1 <= n <= 65535 for n in value.shape):
            return False
        if not fits_any(value.shape, row[3], known):
            return False
    params = {row[0].strip("`"): row for row in rows(op, "param")}
    if set(params) != set(call.params):
        return False
    return all(param_fits(call.params, name, row, known) for name, row in params.items())


def param_fits(params: Mapping[str, Array], name: str, row: list[str], known: dict[str, Any]) -> bool:
    array, limits = params[name], bounds(row[4])
    like = re.fullmatch(r"shape of (\w+)", row[3])
    shape_fits = array.shape == params[like[1]].shape if like else fits_any(array.shape, row[3], known)
    if array.dtype.name != row[2] or 0 in array.shape or not shape_fits:
        return False
    known[name] = array.astype(np.int64)
    return not limits or bool(limits[0] <= array.min() <= array.max() <= limits[1])


def accepts(op: str, call: Call) -> Value | None:
    """What the op gives, by the text alone; None where it refuses."""
    known: dict[str, Any] = dict(call.attrs)
    if not (attrs_fit(op, call.attrs) and operands_fit(op, call, known)):
        return None
    known |= {
        "bits": lambda value: int(value.dtype.lstrip("uint")),
        "row_sum": lambda value: math.inf if value.row_sum is None else value.row_sum,
        "dtype": lambda value: value.dtype,
    }
    conditions = re.findall(r"^    accept: (.*)$", SECTIONS[op][1], re.MULTILINE)
    if not all(eval(condition, dict(known)) for condition in conditions):
        return None
    ((_, _, dtype, shape, *_),) = rows(op, "output")
    result = Value(output_dtype(dtype, known), output_shape(shape, known))
    return result if math.prod(result.shape) <= 2**30 else None


def output_dtype(text: str, known: Mapping[str, Any]) -> str:
    if found := re.fullmatch(r"dtype of (\w+)", text):
        return str(known[found[1]].dtype)
    if found := re.fullmatch(r"(\w+) for (\w) <= (\d+), else (\w+)", text):
        return found[1] if known[found[2]] <= int(found[3]) else found[4]
    if text != "out":
        return text
    return "int16" if known.get("out") == "int16" else "int8"


def output_shape(text: str, known: Mapping[str, Any]) -> tuple[int, ...]:
    shape: list[int] = []
    for word in text.strip("[]").split(", "):
        if word == "...":
            shape.extend(known["..."])
        else:  # factors stand side by side
            product = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", word).replace("/", "//")
            shape.append(eval(product, dict(known)))
    return tuple(shape)


# --------------------------------------------------------------------------------------- calls, right and spoiled


def calls(op: str) -> Iterator[Call]:
    """Valid calls of the exam, with a bound on the row sums or without."""
    d = Numbers.named(f"acceptance {op}")
    found = [*EXAMS[op].calls()[:12], *(EXAMS[op].any_call(d) for _ in range(6))]
    for i, call in enumerate(found):
        row_sum = (None, 2**15 + 3, 2**24 - 1, 2**24)[i % 4]
        inputs = tuple(Value(x.dtype.name, x.shape, row_sum if x.dtype == "int16" else None) for x in call.inputs)
        yield Call(inputs, dict(call.params), dict(call.attrs))


def spoiled(op: str, call: Call) -> Iterator[Call]:
    """The call with one thing changed."""
    for i, value in enumerate(call.inputs):
        others = [replace(value, dtype=dtype) for dtype in DTYPES]
        others += [replace(value, shape=shape) for shape in shapes(value.shape)]
        for other in others:
            yield replace(call, inputs=(*call.inputs[:i], other, *call.inputs[i + 1 :]))
    yield replace(call, inputs=call.inputs[:-1])
    for name, array in call.params.items():
        for other in arrays(array):
            yield replace(call, params={**call.params, name: other})
        yield replace(call, params={n: a for n, a in call.params.items() if n != name})
    for name, value in call.attrs.items():
        stated = bounds(next(row[4] for row in rows(op, "attr") if row[0] == f"`{name}`")) or (0, 0)
        values = {*EDGES, *(end + step for end in stated for step in (-1, 0, 1))}
        if isinstance(value, int):
            values |= {value - 1, value + 1, 2 * value}
        for other in (
            *values,
            True,
            1.0,
            None,
            "int3",
            "int4",
            "int7",
            "int8",
            "int16",
            "int32",
            "paper",
            "normalized",
        ):
            yield replace(call, attrs={**call.attrs, name: other})
        yield replace(call, attrs={n: v for n, v in call.attrs.items() if n != name})


def shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield from ((), (*shape, 1), (1, *shape), shape[:-1], shape[1:], shape[::-1])
    for i, n in enumerate(shape):
        for other in (0, 1, 2, n + 1, 2 * n, 511, 512, 65535, 65536):
            yield (*shape[:i], other, *shape[i + 1 :])


def arrays(array: Array) -> Iterator[Array]:
    yield from (array.astype(dtype) for dtype in DTYPES)
    yield from (np.resize(array, shape) for shape in shapes(array.shape) if math.prod(shape) < 2**20)
    info = np.iinfo(array.dtype)
    for value in sorted({*EDGES, info.min, info.max, -(2**61) + 1, 2**61 - 1, 2**61, 39, 40, 32640, 32641}):
        if info.min <= value <= info.max:
            for place in (0, -1):
                other = array.copy()
                other.flat[place] = value
                yield other


def outcome(op: str, call: Call) -> Value | None:
    """What the loader makes of a call."""
    if len(call.inputs) != len(OPS[op].inputs):
        return None  # a loader counts them before it asks the op
    attrs: Mapping[str, Attr] = call.attrs
    try:
        return check_call(OPS[op], ["x"] * len(call.inputs), call.inputs, call.params, attrs)
    except ModelError:
        return None


@pytest.mark.parametrize("op", OPS)
def test_the_loader_accepts_what_the_checklist_accepts(op: str) -> None:
    found = {True: 0, False: 0}
    for call in calls(op):
        for other in itertools.chain((call,), spoiled(op, call)):
            mine, loader = accepts(op, other), outcome(op, other)
            loaded = None if loader is None else (loader.dtype, loader.shape)
            assert loaded == (None if mine is None else (mine.dtype, mine.shape)), other
            found[loaded is not None] += 1
    assert min(found.values()) > 10, found
