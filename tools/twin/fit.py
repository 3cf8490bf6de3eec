"""Ranges by least squares, and the meaning of a GELU's table: what calibration searches with samples of an MLP."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from intseg.tools.twin.model import QBlock

TABLE_REACH = (0.5, 0.75, 0.9, 0.97, 1.0)
"""Shares of an MLP's units whose inputs the GELU's table holds as they are; the others use it at a larger size."""

TABLE_LOW = (-4.0, -3.0, -2.0)
"""Lower ends of the GELU's table."""

TABLE_MARGIN = 1.05
"""The table reaches this much further than the samples."""

TAIL_GAIN = 10.0
"""By how much a meaning for every unit must lower the error of an MLP.

On a network with long tails (measure/make_hard.py) one meaning for all leaves 92.2 % of the pixels of CamVid val
equal to float, one for each 99.4 %. Where tails are short, lines fitted to one image cost pixels: 99.47 % without
them, 99.39 % where they halve the error, 99.36 % wherever they lower it at all.
"""

CLIPPED, CLIPPED_LOW, CLIP_GAIN = (1 / 2, 1 / 4, 1 / 8, 1 / 16), -3.0, 2.0
"""Parts of an MLP's largest input that a clipped table holds, the least input it holds, by how much it must lower the
error.

A ViT of timm has inputs of 219 in one unit at a few tokens, in others 20 at most: with one table for all of it, every
other input has a step of 0.75."""

MOST_DIVIDED, LEAST_TOP = 4, 6.0
"""Units that are divided at most, and where the table ends at least that they are divided above."""

RAMP_FROM, RAMP_BELOW = 3.0, 3.0
"""See `_ramps`."""

FACTORS = (1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Of what was seen, as ranges that are tried; with 8 bits the last two or three are not."""

GELU_ROWS = 768
"""Samples of a hidden layer that lines are fitted to, and as many that judge them."""


def fit_range(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Per channel of x [rows, channels], the [low, high] of 2^bits levels with the least squared error."""
    factors = FACTORS if bits < 8 else FACTORS[:7]
    low, high = x.amin(0), x.amax(0)
    centre, half = (low + high) / 2, ((high - low) / 2).clamp(min=1e-9)
    return _search(x, centre, half, factors, 2**bits - 1)


def fit_max(x: Tensor, bits: int = 8) -> Tensor:
    """Per channel of x [rows, channels], the symmetric range of 2^bits - 1 levels with the least squared error."""
    factors = FACTORS if bits < 8 else FACTORS[:8]
    zero = torch.zeros(x.shape[1], dtype=x.dtype)
    return _search(x, zero, x.abs().amax(0).clamp(min=1e-9), factors, 2**bits - 2)[1]


def _search(x: Tensor, centre: Tensor, half: Tensor, factors: Sequence[float], steps: int) -> tuple[Tensor, Tensor]:
    best_error = torch.full_like(centre, torch.inf)
    best_half = half.clone()
    for factor in factors:
        trial = half * factor
        step = 2 * trial / steps
        rounded = (torch.round(((x - centre).clamp(-trial, trial) + trial) / step) * step) - trial + centre
        error = ((rounded - x) ** 2).sum(0)
        better = error < best_error
        best_error, best_half = torch.where(better, error, best_error), torch.where(better, trial, best_half)
    return centre - best_half, centre + best_half


def fit_gelu(block: QBlock, x: Tensor, stream: Tensor) -> str:
    """The meaning of the table's inputs and outputs, for all hidden units alike or for each by itself; which it was.

    For each (`_units`) where that is clearly better (TAIL_GAIN): lines are fitted to every other sample and judged by
    the rest. Of all alike, a range is taken that cuts the largest inputs where that is clearly better (CLIP_GAIN). An
    error counts as the next LayerNorm sees it: a few tokens whose stream is a hundred times as large would hide all
    others, and the LayerNorm hardly sees how large they are. Few units that reach far beyond that range are divided
    (`_divided`), where that is clearly better again.

    x       [rows, units], inputs of the GELU
    stream  [rows, width], what the block gives
    """
    flat = x.flatten()
    flat = flat[:: max(1, len(flat) // 200_000)]
    y, bits = F.gelu(flat), block.gelu_act.bits
    if block.gelu.op != "gelu_table":  # the arithmetic of the others needs real = q * scale
        block.fc1_act.set_max(fit_max(flat[:, None], block.fc1_act.bits))
        block.gelu_act.set_max(fit_max(y[:, None], block.gelu_act.bits))
        return "least squares"
    table, errors = block.gelu.table_x, {}
    for low in (-6.0, -5.0, -4.0, -3.5, -3.0, -2.5, -2.0, -1.5):
        for factor in (1.05, 1.0, 0.95, 0.9, 0.8, 0.7):
            bottom, top = torch.maximum(flat.min(), torch.tensor(low)), flat.max().clamp(min=0.1) * factor
            table.set_range(bottom, top)
            error = ((F.gelu(table.dequantize(table.quantize(flat))) - y) ** 2).sum()
            errors[float(error)] = (bottom, top)
    alike = [functools.partial(_alike, block, errors[min(errors)], fit_range(y[:, None], bits))]
    for share in CLIPPED:
        top = (flat.max() * share).clamp(min=0.1)
        inputs = torch.maximum(flat.min(), torch.tensor(CLIPPED_LOW)), top
        alike.append(functools.partial(_alike, block, inputs, fit_range(F.gelu(flat.clamp(max=top))[:, None], bits)))

    each = max(1, len(x) // (2 * GELU_ROWS))
    x, stream = x[::each], stream[::each]
    reach = x.amax(0)
    tops = [max(0.1, float(reach.quantile(share)) * TABLE_MARGIN) for share in TABLE_REACH]
    lines = [functools.partial(_units, block, x[::2], reach, low, top) for low in TABLE_LOW for top in tops]
    error = functools.partial(_error_after_fc2, block, x[1::2], stream[1::2], _after_fc2(block, F.gelu(x[1::2])))
    whole, *cut = map(error, alike)
    clipped = min(cut) < whole / CLIP_GAIN
    best_alike, least = (alike[1 + cut.index(min(cut))], min(cut)) if clipped else (alike[0], whole)
    found = list(map(error, lines))
    if min(found) < least / TAIL_GAIN:
        lines[found.index(min(found))]()
        return "a line for each unit"
    if clipped and bits == 8 and _divided(block, x, reach, alike[1:], error, least / CLIP_GAIN):
        return "one for all units, some divided"
    best_alike()
    return "one for all units, clipped" if clipped else "one for all units"


def _after_fc2(block: QBlock, y: Tensor) -> Tensor:
    return y @ block.fc2.weight.double().T


def _error_after_fc2(
    block: QBlock, x: Tensor, stream: Tensor, exact: Tensor, assign: Callable[[], None] = lambda: None
) -> float:
    """Squared error that the quantized GELU of inputs x [rows, units] causes, with a candidate assigned.

    stream  what the block gives, [rows, width]; the error counts after a LayerNorm of it
    exact   what fc2 makes of the exact GELU, [rows, width]
    """
    assign()
    x = x if block.fc1.units is None else x[:, block.fc1.units]
    y = block.gelu_act.dequantize(block.gelu.integers()["table"][block.fc1_act.quantize(x) + 128])
    wrong = stream + _after_fc2(block, y) - exact
    seen, wanted = (F.layer_norm(rows, rows.shape[-1:]) for rows in (wrong, stream))
    return float(((seen - wanted) ** 2).sum())


def _divided(
    block: QBlock,
    x: Tensor,
    reach: Tensor,
    clipped: Sequence[Callable[[], None]],
    error: Callable[..., float],
    enough: float,
) -> bool:
    """Divide units that reach far beyond a table: each keeps the part inside, others take the parts above.

    GELU(x) = min(GELU(x), t) + a ramp from t to t + s t + a ramp from there on: a ramp is the table's curve at s times
    its size, begun where the part below ends. The units that give way are those whose outputs vary least, as fc2 sees
    them. The graph keeps its shape.

    clipped  candidates for the table of all units
    enough   the error to come below; where none does, nothing is changed
    """
    fc1, fc2 = block.fc1, block.fc2
    whole = [fc1.weight.detach(), fc1.bias.detach().clone(), fc2.weight.detach()]
    spare = (F.gelu(x).var(0) * (fc2.weight.double() ** 2).sum(0)).argsort().tolist()
    found: dict[float, Callable[[], None]] = {}
    for assign in clipped:
        assign()
        if _divide(block, whole, spare, reach):
            found[error()] = assign
        _put_units(block, whole, None)
    if not found or min(found) > enough:
        return False
    found[min(found)]()
    return _divide(block, whole, spare, reach)


def _divide(block: QBlock, whole: Sequence[Tensor], spare: Sequence[int], reach: Tensor) -> bool:
    """Divide the far units for the table that is assigned, False where none or too many reach far; see `_divided`."""
    top = float(block.gelu.table_x.dequantize(torch.tensor(127)).max())
    far = (reach > 2 * top).nonzero().flatten().tolist()
    parts = [(unit, *ramp) for unit in far for ramp in _ramps(top, float(reach[unit]) * TABLE_MARGIN)]
    if not far or len(far) > MOST_DIVIDED or top < LEAST_TOP:
        return False
    units, step_y = torch.arange(len(reach)), block.gelu.table_y.scale
    lowest = float(block.gelu.integers()["table"][0])
    for place, (unit, start, size) in zip([u for u in spare if u not in far], parts, strict=False):
        units[place] = unit
        block.fc1_act.scale[place] = block.gelu.table_x.scale * size
        block.fc1_act.mid[place] = start + block.gelu.table_x.mid * size
        block.gelu_act.scale[place] = step_y * size
        block.gelu_act.mid[place] = -lowest * step_y * size  # far below its start a ramp is exactly zero
    _put_units(block, whole, units)
    return True


def _put_units(block: QBlock, whole: Sequence[Tensor], units: Tensor | None) -> None:
    """Rows of fc1 and columns of fc2 for these units of `whole` (fc1's weight and bias, fc2's weight), None for all."""
    block.fc1.units = units
    rows = slice(None) if units is None else units
    block.fc1.weight.data = whole[0][rows]  # what was there may be the float model's
    block.fc1.bias.copy_(whole[1][rows])
    block.fc2.weight.data = whole[2][:, rows]


def _ramps(top: float, reach: float) -> list[tuple[float, float]]:
    """(start, size) of the ramps above a table that ends at `top`, up to `reach`.

    Inputs up to RAMP_FROM must lie RAMP_BELOW below the start, in units of the size: the curve is zero there.
    """
    ramps, start = [], top
    while start < reach and len(ramps) < 3:
        size = min((start - RAMP_FROM) / RAMP_BELOW, (reach - start) / top)
        ramps.append((start, size))
        start += size * top
    return ramps


def _alike(block: QBlock, inputs: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor]) -> None:
    """One meaning for all units: the ranges (low, high) of the table's inputs and outputs."""
    gelu = block.gelu
    gelu.table_x.set_range(*inputs)
    gelu.table_y.set_range(*outputs)
    for act, table in ((block.fc1_act, gelu.table_x), (block.gelu_act, gelu.table_y)):
        act.set(table.scale, table.mid)


def _units(block: QBlock, x: Tensor, reach: Tensor, low: float, top: float) -> None:
    """Give the table the inputs [low, top] and every unit a size at which it reaches no further.

    A unit's output is the line through the table's that comes closest to its samples (which also makes its mean
    right). x [rows, units]: inputs of the GELU.
    """
    gelu, y = block.gelu, F.gelu(x)
    gelu.table_x.set_range(torch.tensor(low), torch.tensor(top))
    curve = F.gelu(gelu.table_x.dequantize(torch.arange(-128, 128)))
    gelu.table_y.set_range(curve.min(), curve.max())
    size = (reach * TABLE_MARGIN / top).clamp(min=1.0)
    block.fc1_act.set(gelu.table_x.scale * size, gelu.table_x.mid * size)
    z = gelu.table_y.dequantize(gelu.integers()["table"])[block.fc1_act.quantize(x) + 128]
    z_mean, y_mean = z.mean(0), y.mean(0)
    variance = ((z - z_mean) ** 2).mean(0)
    slope = ((z - z_mean) * (y - y_mean)).mean(0) / variance.clamp(min=1e-12)
    slope = torch.where(variance > 1e-9, slope.clamp(size / 2, size * 2), size)
    block.gelu_act.set(gelu.table_y.scale * slope, gelu.table_y.mid * slope + y_mean - slope * z_mean)
