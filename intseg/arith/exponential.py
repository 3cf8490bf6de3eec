"""e^x by shifts and adds (paper eq. 9-12; SPEC 2.8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .cases import Case, above, below
from .variant import Named, Variant

if TYPE_CHECKING:
    from .machine import Machine


def shift_exp(m: Machine, x: Any, i0: int, k: int, lam: int) -> Any:
    """2^k * i0 * e^(x / i0) for x <= 0.

    x    int64  -2^40 < x <= 0
    i0   1 <= i0 <= 2^15: the integer that stands for 1.0
    k    0 <= k <= 31
    lam  1 <= lam <= 64: the clamp of eq. 11 is -lam k i0
    """
    found = _split(m, x, i0, k, lam)
    return _power(m, found, k - found["q"])


def aligned_exps(m: Machine, x: Any, y: Any, i0: int, k: int, lam: int) -> tuple[Any, Any]:
    """shift_exp of x and of y, both times the power of two that brings the larger to k bits (SPEC 2.9)."""
    found, beside = _split(m, x, i0, k, lam), _split(m.quiet, y, i0, k, lam)
    behind = found["q"] - m.keep("q_0", beside["q"], 32)
    m.cases(ALIGNED, "align", behind=behind)
    own = _power(m, found, k - m.at_least(behind, 0))
    return own, m.keep("exponential_0", _power(m.quiet, beside, k - m.at_least(-behind, 0)), 64)


def _split(m: Machine, x: Any, i0: int, k: int, lam: int) -> dict[str, Any]:
    """e^(x / i0) as i_b 2^-q, with what led to it."""
    stretched = m.way("stretched", m.stretch(x))
    exponent = m.keep("exponent", m.at_least(stretched, -lam * k * i0), 64)
    q, r = m.divmod(-exponent, i0)
    q, r = m.keep("q", q, 32), m.keep("r", r, 32)
    i_b = m.keep("i_b", m.floor_shift(-r, 1) + i0, 32)  # 2^-f ~ 1 - f / 2
    return {"x": x, "stretched": stretched, "exponent": exponent, "q": q, "r": r, "i_b": i_b}


def _power(m: Machine, found: Mapping[str, Any], count: Any) -> Any:
    """i_b 2^count."""
    power = m.keep("exponential", m.shift_left(found["i_b"], count), 64)
    m.cases(SHIFT_EXP, "exp", **found, count=count, power=power)
    return power


def times_1_4375(m: Machine, x: Any) -> Any:
    """Binary 1.0111, for log2 e; it never falls where x rises: a step adds 1, 0 or 1, and takes 0 or 1."""
    return x + m.floor_shift(x, 1) - m.floor_shift(x, 4)


_CLAMPED = (
    Case("top", "2.8", "x = 0", lambda f: f["x"] == 0),
    Case("clamped", "2.8", "the clamp -lam k i0 acts", lambda f: f["exponent"] > f["stretched"],
         lambda f: f["exponent"].lowest > f["stretched"].lowest),
    Case("q-zero", "2.8", "q = 0, r > 0", lambda f: (f["q"] == 0) & (f["r"] > 0), above("r", 0)),
    Case("r-zero", "2.8", "q > 0, r = 0", lambda f: (f["q"] > 0) & (f["r"] == 0), above("q", 0)),
    Case("r-odd", "2.8", "odd r: the floor of -r / 2 matters", lambda f: f["r"] % 2 == 1, above("r", 0)),
    Case("half-floor", "2.8", "odd x: the floor of x / 2 matters", lambda f: f["x"] % 2 == 1),
    Case("sixteenth-floor", "2.8", "the floor of x / 16 matters", lambda f: f["x"] % 16 != 0),
)  # fmt: skip

_SHIFTED = (
    Case("left", "2.4", "k - q > 0: left shift", lambda f: f["count"] > 0, above("count", 0)),
    Case("still", "2.4", "k - q = 0", lambda f: f["count"] == 0, lambda f: f["count"].lowest <= 0),
    Case("right", "2.4", "k - q < 0: right shift",
         lambda f: (f["count"] < 0) & (f["count"] >= -62), below("count", 0)),
    Case("right-beyond-62", "2.4", "k - q < -62 acts as -62", lambda f: f["count"] < -62, below("count", -62)),
    Case("vanishes", "2.8", "the result is 0", lambda f: f["power"] == 0, lambda f: f["power"].lowest <= 0),
)  # fmt: skip

SHIFT_EXP = (*_CLAMPED, *_SHIFTED)

ALIGNED = (
    Case("own", "2.9", "x has the larger exponent: y is shifted", lambda f: f["behind"] < 0, below("behind", 0)),
    Case("same", "2.9", "both have one exponent", lambda f: f["behind"] == 0),
    Case("other", "2.9", "y has the larger exponent: x is shifted", lambda f: f["behind"] > 0, above("behind", 0)),
)


def exponents() -> Named:
    """An exponent to another base."""
    yield "exponent not multiplied by 1.4375", Variant(quirk="e_not_2")
