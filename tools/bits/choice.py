"""What `intseg convert` was asked about bits, as an allocation: uniform, read from a file, or found under budgets."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from intseg.errors import UsageError
from intseg.tools.bits import scores
from intseg.tools.bits.allocation import (
    Allocation,
    Budget,
    LayerCost,
    Problem,
    allocate,
    described,
    load,
    uniform,
)
from intseg.tools.twin.calibrate import node_of, normalise
from intseg.tools.twin.classifier import Classifier
from intseg.tools.twin.model import FakeQuant
from intseg.tools.twin.segmenter import Segmenter


def allocation_of(
    args: argparse.Namespace, model: Segmenter | Classifier, names: Sequence[str], batches: Sequence[Tensor]
) -> tuple[Allocation | None, list[str]]:
    """The bits of every layer, None where nothing was asked, and lines that say how they were found.

    args      `bits`, `uniform`, `budget_mb`, `budget_bitops`, `score`, `beta`, `bit_range`
    names     the nodes of the linear layers, in the order of the graph
    batches   uint8 windows [B, H, W, 3] of every calibration image
    """
    limited = args.budget_mb is not None or args.budget_bitops is not None
    asked = [name for name, given in _exclusive(args, limited) if given]
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} each say how many bits layers get; leave all but one out")
    if not asked:
        return None, []
    costs = layer_costs(model, batches[0][:1], names)
    if args.uniform:
        found, lines = uniform(costs, *args.uniform), []
    elif args.bits:
        found, lines = load(Path(args.bits), costs), []
    else:
        found, lines = _best(args, model, costs, batches)
    return found, lines


def as_twin_bits(twin: FakeQuant, allocation: Allocation) -> dict[str, dict[str, int]]:
    """An allocation as `set_bits` takes it: the activations of every layer have as many bits."""
    found = twin.uniform_bits(8, allocation.activations)
    for name, bits in allocation.bits.items():
        found[name]["weight"] = bits
    return found


def _exclusive(args: argparse.Namespace, limited: bool) -> Iterator[tuple[str, bool]]:
    yield from (("--uniform", bool(args.uniform)), ("--bits", bool(args.bits)), ("--budget-...", limited))


def _best(
    args: argparse.Namespace, model: Segmenter | Classifier, costs: Sequence[LayerCost], batches: Sequence[Tensor]
) -> tuple[Allocation, list[str]]:
    low, high = args.bit_range
    if low > high:
        raise UsageError(f"--bit-range is {low} {high}, expected the lower one first")
    bits = tuple(range(low, high + 1))
    budget = Budget(
        None if args.budget_mb is None else int(args.budget_mb * 8e6),
        None if args.budget_bitops is None else int(args.budget_bitops * 1e9),
    )
    blank = torch.zeros(len(costs), len(bits)).double().numpy()
    Problem(costs, blank, blank[1:, 0], 0.0, bits).limits(budget)  # before the minutes that scores take
    probe = scores.Probe(model, spread(batches), [layer.name for layer in costs])
    found = scores.measure(probe, args.score, bits, args.beta)
    problem = Problem(costs, found.gain, found.synergy, args.beta, bits)
    best = allocate(problem, budget)
    about = {"score": args.score, "beta": args.beta, "budget_mb": args.budget_mb, "budget_gbitops": args.budget_bitops}
    chosen = dict(zip((layer.name for layer in costs), best.bits, strict=True))
    return Allocation(chosen, about=about), described(problem, budget, best)


def spread(batches: Sequence[Tensor], most: int = scores.WINDOWS) -> Tensor:
    """One window of each of up to `most` images, evenly spaced; of fewer images more windows."""
    if len(batches) >= most:
        picked = [batches[i * len(batches) // most] for i in range(most)]
        return torch.stack([batch[i % len(batch)] for i, batch in enumerate(picked)])
    flat = torch.cat(list(batches))
    return flat[[i * len(flat) // min(most, len(flat)) for i in range(min(most, len(flat)))]]


def layer_costs(model: Segmenter | Classifier, images: Tensor, names: Sequence[str]) -> list[LayerCost]:
    """Weights of the linear layers, and their multiply-accumulates for one window: images uint8 [1, H, W, 3]."""
    rows: dict[str, int] = {}

    def hook(node: str) -> Callable[[nn.Module, object, Tensor], None]:
        def count(module: nn.Module, inputs: object, output: Tensor) -> None:
            cells = output[0].flatten(1).T if isinstance(module, nn.Conv2d) else output[0]
            rows[node] = cells.shape[-2]

        return count

    found = [(node_of(name), module) for name, module in model.named_modules()]
    handles = [module.register_forward_hook(hook(node)) for node, module in found if node in names]
    try:
        with torch.no_grad():
            model.forward_scores(normalise(images, model.config))
    finally:
        for handle in handles:
            handle.remove()
    sizes = {node: scores.matrix_of(model, node).numel() for node in names}
    return [LayerCost(node, sizes[node], sizes[node] * rows[node]) for node in names]
