"""Words of a memory as text: $readmemh, $readmemb, COE, MIF, Intel HEX and C headers, written and read back.

Words are unsigned numbers of some bits. A reader gives pieces: an address, in words, and the words from there on; all
of them together have to fill every address once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg.errors import InputError

Bytes = NDArray[np.uint8]

_MAX_ABBREVIATED = 64
"""Bytes of words that a byte of text may stand for: other tools leave out zeros in front."""

_MAX_REPEATED = 1 << 15
"""Bytes of text that a MIF counts as if it is shorter: a range of it is one line."""

MAX_IHEX_BITS = 8 * 255
"""Bits of a word of Intel HEX: a record has at most 255 bytes."""


@dataclass(frozen=True)
class Piece:
    """Words in order from an address on, each as it is written."""

    address: int
    words: Sequence[str]


# ---------------------------------------------------------------------------------------------------------- writing


def lines(chunks: Iterable[Bytes], bits: int, digit: str) -> Iterator[str]:
    """One text line a word: hexadecimal (digit "x") or binary ("b"), the highest digit first.

    chunks  uint8 [some, bytes of a word], the lowest byte first
    """
    for chunk in chunks:
        if not len(chunk):
            continue
        high = np.ascontiguousarray(chunk[:, ::-1])
        if digit == "x":
            digits = -(-bits // 4)
            yield from (line[-digits:] for line in high.tobytes().hex("\n", high.shape[1]).split("\n"))
        else:
            text = (np.unpackbits(high, axis=1)[:, -bits:] + ord("0")).tobytes().decode("ascii")
            yield from (text[i : i + bits] for i in range(0, len(text), bits))


def coe(words: Iterable[str]) -> str:
    """A COE file of hexadecimal words."""
    body = ",\n".join(words)
    return f"memory_initialization_radix=16;\nmemory_initialization_vector=\n{body};\n"


def mif(words: Iterable[str], count: int, bits: int) -> str:
    """A memory initialization file of `count` hexadecimal words."""
    body = "".join(f"{address:x} : {word};\n" for address, word in enumerate(words))
    radix = "ADDRESS_RADIX=HEX;\nDATA_RADIX=HEX;\n"
    return f"WIDTH={bits};\nDEPTH={count};\n{radix}CONTENT BEGIN\n{body}END;\n"


def ihex(words: Iterable[str], bits: int) -> str:
    """Intel HEX as FPGA tools take it: a record a word, addresses count words, the highest byte first."""
    size, found = -(-bits // 8), []
    for address, word in enumerate(words):
        if address and not address & 0xFFFF:
            found.append(_record(0, 4, (address >> 16).to_bytes(2, "big")))
        found.append(_record(address & 0xFFFF, 0, int(word, 16).to_bytes(size, "big")))
    return "".join([*found, _record(0, 1, b"")])


def _record(address: int, kind: int, data: bytes) -> str:
    content = bytes((len(data), address >> 8, address & 0xFF, kind)) + data
    return f":{content.hex().upper()}{-sum(content) & 0xFF:02X}\n"


def c_name(name: str) -> str:
    """The C identifier of a tensor."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name if not name[0].isdigit() else f"t_{name}")


def c_header(
    name: str, dtype: np.dtype[Any], shape: Sequence[int], words: Iterable[str], bits: int, whole: bool
) -> str:
    """A header with the words as an array: of the tensor's type where a word is one whole element, else unsigned."""
    own = 8 * dtype.itemsize
    size = own if whole else next(n for n in (8, 16, 32, 64) if n >= bits)
    kind = f"{dtype.name}_t" if whole else f"uint{size}_t"
    values = [int(word, 16) for word in words]
    if whole and dtype.kind == "i":
        values = [w - (w >> (own - 1) << own) for w in values]
    label = c_name(name)
    extents = ", ".join(map(str, shape))
    body = ",\n  ".join(", ".join(map(_literal, values[i : i + 12])) for i in range(0, len(values), 12))
    return (
        f"#ifndef {label.upper()}_H\n#define {label.upper()}_H\n#include <stdint.h>\n"
        f"/* {name}: {dtype.name} [{extents}] */\n#define {label}_LENGTH {len(values)}\n"
        f"static const {kind} {label}[{max(len(values), 1)}] = {{\n  {body or '0'}\n}};\n#endif\n"
    )


def _literal(value: int) -> str:
    """A C constant of any size up to 64 bits; INT64's lowest value has no literal of its own."""
    if value == -(2**63):
        return "(-9223372036854775807LL - 1)"
    if abs(value) < 2**31:
        return str(value)
    return f"{value}LL" if value < 2**63 else f"{value}ULL"


# ---------------------------------------------------------------------------------------------------------- reading


def parse(data: bytes, kind: str, count: int, bits: int) -> Bytes:
    """Words of a text file, uint8 [count, bytes of a word], the lowest byte first.

    kind    hex, mem, coe, mif, ihex or c
    Raises InputError for another number of words, addresses that are missing or given twice, words of other bits.
    """
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise InputError(f"not a {kind} file: it holds other characters than text") from None
    size = -(-bits // 8)
    if kind == "mif":
        _require_digits(count, bits, max(len(data), _MAX_REPEATED))
    pieces, base = _READERS[kind](text, count, bits)
    tokens = _joined(pieces)
    if len(tokens) != count:
        more = "truncated" if len(tokens) < count else "too long"
        raise InputError(f"{len(tokens)} words, expected {count} of {bits} bits: {more}, or another word width")
    if kind != "mif":
        _require_digits(count, bits, len(data))
    return _numbers(tokens, base, bits, size)


def _require_digits(count: int, bits: int, length: int) -> None:
    """Words that a text of this length may stand for: leading zeros may be missing, ranges of a MIF repeated."""
    if count * -(-bits // 8) > _MAX_ABBREVIATED * length:
        raise InputError(f"{count} words of {bits} bits in {length} bytes: digits are missing, or another word width")


def _joined(pieces: Sequence[Piece]) -> Sequence[str]:
    """The words of all pieces by address. Raises InputError naming what is missing or given twice."""
    if len(pieces) == 1:
        return pieces[0].words
    ordered = sorted(pieces, key=lambda piece: piece.address)
    found: list[str] = []
    start = ordered[0].address
    for piece in ordered:
        address, expected = piece.address, start + len(found)
        if address > expected:
            raise InputError(f"no words for addresses {expected:#x} to {address - 1:#x}, expected all words in order")
        if address < expected:
            raise InputError(f"address {address:#x} is given twice: words before it reach to {expected - 1:#x}")
        found.extend(piece.words)
    return found


def _numbers(tokens: Sequence[str], base: int, bits: int, size: int) -> Bytes:
    """The words as bytes."""
    digits = -(-bits // 4) if base == 16 else bits
    if base == 16 and bits % 8 == 0 and all(len(token) == digits and token.isalnum() for token in tokens):
        try:  # every digit is there: all at once
            return np.frombuffer(bytes.fromhex("".join(tokens)), np.uint8).reshape(len(tokens), size)[:, ::-1]
        except ValueError:
            pass  # say below which one is wrong
    result = np.empty((len(tokens), size), np.uint8)
    for i, token in enumerate(tokens):
        result[i] = np.frombuffer(_word(token, base, bits, digits, i).to_bytes(size, "little"), np.uint8)
    return result


def _word(token: str, base: int, bits: int, digits: int, index: int) -> int:
    """One word as an unsigned number; decimal ones may have a sign."""
    clean = token.replace("_", "")
    try:
        if not re.fullmatch(r"[0-9A-Fa-f]+" if base != 10 else r"-?[0-9]{1,400}", clean):
            raise ValueError
        value = int(clean, base)
    except ValueError:
        unknown = " (x and z are unknown values)" if re.search("[xXzZ]", token) else ""
        raise InputError(f"word {index} is {token[:40]!r}, expected {digits} digits of base {base}{unknown}") from None
    if -(1 << bits - 1) <= value < 0:
        value += 1 << bits
    if (base in (2, 16) and len(clean) > digits) or value >> bits:
        raise InputError(f"word {index} is {token[:40]!r}, expected {bits} bits: another word width")
    return value


# ------------------------------------------------------------------------------------------------------ the formats

_Read = tuple[Sequence[Piece], int]
"""Pieces, and the base of their words."""


def _readmem(text: str, base: int) -> _Read:
    """$readmemh, $readmemb: words between blanks, comments as in Verilog, `@hex` before words that lie elsewhere."""
    words = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL).split()
    if "@" not in text:
        return [Piece(0, words)], base
    pieces: list[tuple[int, list[str]]] = []
    for word in words:
        if word.startswith("@"):
            if not re.fullmatch(r"@[0-9A-Fa-f_]{1,16}", word):
                raise InputError(f"address {word[:40]!r}, expected @ and hexadecimal digits")
            pieces.append((int(word[1:].replace("_", "") or "0", 16), []))
        else:
            if not pieces:
                pieces.append((0, []))
            pieces[-1][1].append(word)
    return [Piece(address, found) for address, found in pieces if found] or [Piece(0, [])], base


def _coe(text: str, count: int, bits: int) -> _Read:
    """COE: radix 2, 10 or 16; words between commas or blanks; lines that begin with ; are comments."""
    text = re.sub(r"^[ \t]*;[^\n]*[^\s;][^\n]*$", "", text, flags=re.MULTILINE)
    radix = re.search(r"memory_initialization_radix\s*=\s*(2|10|16)\s*;", text, re.IGNORECASE)
    vector = re.search(r"memory_initialization_vector\s*=(.*);", text, re.IGNORECASE | re.DOTALL)
    if radix is None or vector is None:
        raise InputError("not a COE file of radix 2, 10 or 16 that ends in ;")
    return [Piece(0, re.split(r"[\s,]+", vector[1].strip(", \t\r\n")) if vector[1].strip(", \t\r\n") else [])], int(
        radix[1]
    )


_RADIX = {"HEX": 16, "BIN": 2, "OCT": 8, "DEC": 10, "UNS": 10}


def _mif(text: str, count: int, bits: int) -> _Read:
    """MIF: `address : words;` and `[first..last] : words;`, which are repeated; -- and % begin comments."""
    text = re.sub(r"--[^\n]*|%[^%]*%", " ", text).upper()
    head, begin, body = text.partition("BEGIN")
    fields = dict(re.findall(r"(\w+)\s*=\s*(\w+)\s*;", head))
    rows, end, _ = body.rpartition("END")
    if not begin or not end or not re.search(r"CONTENT\s*$", head):
        raise InputError("not a MIF file: expected CONTENT BEGIN ... END;")
    stated = tuple(fields.get(name, "") for name in ("DEPTH", "WIDTH"))
    if stated != (str(count), str(bits)):
        raise InputError(f"DEPTH {stated[0] or 'missing'}, WIDTH {stated[1] or 'missing'}, expected {count} and {bits}")
    radix = [fields.get(f"{what}_RADIX", "HEX") for what in ("ADDRESS", "DATA")]
    if not all(name in _RADIX for name in radix):
        raise InputError(f"radixes {radix[0][:20]} and {radix[1][:20]}, expected {', '.join(_RADIX)}")
    pieces = [_mif_row(row, _RADIX[radix[0]], count) for row in rows.split(";") if row.strip()]
    return [Piece(0, []), *pieces], _RADIX[radix[1]]


def _mif_row(row: str, base: int, count: int) -> Piece:
    match = re.fullmatch(r"\s*(?:(\w{1,40})|\[\s*(\w{1,40})\s*\.\.\s*(\w{1,40})\s*\])\s*:\s*(\S[^:]*)", row)
    try:
        if match is None:
            raise ValueError
        words = match[4].split()
        if match[1]:
            return Piece(int(match[1], base), words)
        first, last = int(match[2], base), int(match[3], base)
    except ValueError:
        raise InputError(
            f"line {' '.join(row.split())[:60]!r}, expected address : words or [first..last] : words"
        ) from None
    if not first <= last < count:
        raise InputError(f"addresses [{first:#x}..{last:#x}], expected an order inside of {count} words")
    times = -(-(last - first + 1) // len(words))
    return Piece(first, (words * times)[: last - first + 1])


def _ihex(text: str, count: int, bits: int) -> _Read:
    """Intel HEX, its checksums verified: every record has whole words, addresses count words."""
    size, upper, ended = -(-bits // 8), 0, False
    pieces = [Piece(0, [])]
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line:
            continue
        address, kind, data = _checked(line, number)
        if ended:
            raise InputError(f"line {number} follows the record that ends the file")
        ended = kind == 1
        if kind in (2, 4):
            upper = int.from_bytes(data, "big") << (16 if kind == 4 else 4)
        elif kind == 0:
            if not data or len(data) % size:
                raise InputError(f"line {number} has {len(data)} bytes, expected words of {size} ({bits} bits)")
            pieces.append(Piece(upper + address, [data[i : i + size].hex() for i in range(0, len(data), size)]))
        elif kind not in (1, 3, 5):
            raise InputError(f"line {number} is a record of type {kind}, expected 0 to 5")
    if not ended:
        raise InputError("the record that ends the file is missing: truncated")
    return [Piece(p.address, [_unpadded(w, bits) for w in p.words]) for p in pieces], 16


def _checked(line: str, number: int) -> tuple[int, int, bytes]:
    """Address, type and data of a record. Raises InputError."""
    try:
        if line[0] != ":" or not re.fullmatch(r"[0-9A-Fa-f]{10,}", line[1:]):
            raise ValueError
        record = bytes.fromhex(line[1:])
    except ValueError:
        raise InputError(f"line {number} is {line[:40]!r}, expected a record of Intel HEX") from None
    if len(record) != record[0] + 5:
        raise InputError(f"line {number} has {len(record) - 5} bytes, its record says {record[0]}: truncated")
    if sum(record) & 0xFF:
        wanted = -sum(record[:-1]) & 0xFF
        raise InputError(f"line {number} has the checksum {record[-1]:02X}, expected {wanted:02X}: it was changed")
    return int.from_bytes(record[1:3], "big"), record[3], record[4:-1]


def _unpadded(word: str, bits: int) -> str:
    """Without the zeros that fill up the highest byte."""
    digits = -(-bits // 4)
    return word[-digits:] if set(word[:-digits]) <= {"0"} else word


def _c(text: str, count: int, bits: int) -> _Read:
    """The array of a header that this module wrote."""
    return [Piece(0, [f"{v + (1 << bits) if -(1 << bits) < v < 0 else v:x}" for v in _c_values(text)])], 16


def _c_values(text: str) -> Iterator[int]:
    match = re.search(r"\[\d+\] = \{(.*)\};", text, re.DOTALL)
    length = re.search(r"_LENGTH (\d+)$", text, re.MULTILINE)
    if match is None or length is None:
        raise InputError("not a C header written by intseg dump")
    lowest = match.group(1).replace("(-9223372036854775807LL - 1)", str(-(2**63)))
    numbers = [part.strip().rstrip("UL") for part in lowest.split(",")] if int(length.group(1)) else []
    try:
        yield from [int(number) for number in numbers]
    except ValueError:
        raise InputError("the array of the C header holds something else than numbers") from None


_READERS: dict[str, Callable[[str, int, int], _Read]] = {
    "hex": lambda text, count, bits: _readmem(text, 16),
    "mem": lambda text, count, bits: _readmem(text, 2),
    "coe": _coe,
    "mif": _mif,
    "ihex": _ihex,
    "c": _c,
}
