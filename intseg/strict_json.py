"""JSON of unknown origin: whatever is wrong with it is one ValueError."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_DEPTH = 32
"""Lists and objects inside each other; intseg writes at most 6."""


def parse(text: str | bytes) -> Any:
    """The value of a JSON document, with finite numbers only.

    Raises ValueError, and nothing else, for what is not one: also for NaN, for numbers beyond a double or of more than
    4,300 digits, for half a surrogate pair in a text, which nothing can write, and for more than MAX_DEPTH levels,
    which exhaust the stack of whatever walks over them.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("lists or objects nested too deeply") from None
    require_shallow(value)
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if not data.isascii() or b"\\u" in data:
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def require_shallow(value: object) -> None:
    """Raise ValueError for a document of more than MAX_DEPTH levels."""
    level, depth = [value], 0
    while level := [v for v in level if type(v) is dict or type(v) is list]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels of lists and objects")
        level = [v for part in level for v in (part.values() if isinstance(part, dict) else part)]


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large")
    return value
