"""Make a float Segmenter deeper, or hard to quantize: test subjects for calibration, constructed and called so.

python tools/measure/make_hard.py checkpoint.pth -o runs/deep --deepen 2
python tools/train.py --from runs/deep --root CamVid -o runs/tiny24 --steps 500 --lr 3e-4
python tools/measure/make_hard.py runs/tiny24 -o runs/hard --outliers 60
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from intseg.errors import UsageError
from intseg.tools.convert import model_info, recipe_for, windows
from intseg.tools.ends import ended
from intseg.tools.twin.calibrate import normalise, tapped
from intseg.tools.twin.checkpoint import load_checkpoint, save_checkpoint
from intseg.tools.twin.classes import for_model
from intseg.tools.twin.segmenter import Attention, Block, MaskTransformer, Segmenter

FIRST = 0.8
"""Share of a block's step that its first copy takes; the others share the rest."""


def deepen(model: Segmenter, times: int, spare: int) -> Segmenter:
    """Every encoder block `times` times, each taking a share of its step along the residual stream.

    As the stream moves little per block this is nearly the same function, and a short training makes up for the rest.
    On
    13 images of CamVid val the trained Tiny lost 3.5 mIoU with two equal halves, before that training, and 0.9 with
    FIRST. The `spare` hidden units of each MLP that matter least (norm of the row that makes it times norm of the
    column that reads it) are set to zero, where training leaves them: their gradient is zero.
    """
    if times < 2:
        raise UsageError(f"times is {times}, expected at least 2")
    config = dataclasses.replace(model.config, n_layers=times * model.config.n_layers)
    deep = Segmenter(config)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.blocks.")}
    for i in range(config.n_layers):
        for name, value in model.encoder.blocks[i // times].state_dict().items():
            branch_end = name.startswith(("attn.proj.", "mlp.fc2."))
            share = FIRST if i % times == 0 else (1 - FIRST) / (times - 1)
            state[f"encoder.blocks.{i}.{name}"] = value * share if branch_end else value.clone()
    deep.load_state_dict(state)
    with torch.no_grad():
        for block in deep.encoder.blocks:
            mlp, gain = block.mlp, block.norm2.weight
            importance = (mlp.fc1.weight * gain).norm(dim=1) * mlp.fc2.weight.norm(dim=0)
            least = importance.argsort(stable=True)[:spare]
            mlp.fc1.weight[least], mlp.fc1.bias[least] = 0.0, 0.0
            mlp.fc2.weight[:, least] = 0.0
    return deep.eval()


LEAST = 20.0
"""Outlier factors lie between this and what is asked for, evenly on a logarithmic axis."""

CHANNELS = 6
"""Outlier channels of every LayerNorm, of every v and of every pair of q and k."""

STEEP = 6
"""Hidden units of every MLP that are made steep."""


def add_outliers(model: Segmenter, factor: float, seed: int = 0) -> None:
    """Make a model hard to quantize, in place, by the same function with badly spread intermediates.

    Exact in real arithmetic:
      - of every LayerNorm before a linear layer, CHANNELS channels grow by LEAST to `factor` and the weights that read
        them shrink by as much (outlier channels, as large transformers have them);
      - of every attention, CHANNELS channels of v grow and the columns of proj shrink, as many of q grow and of k
        shrink, each by the square root of such a factor, because an attention also adds its channels up;
      - where an MLP has unused hidden units (`deepen` leaves some), four at a time become two pairs p, -p and t, -t
        with p = g t that reach `factor` and cancel in fc2: GELU(p) - GELU(-p) = p. A range that clips p breaks the
        balance, one that does not leaves the other hidden units few levels.
    Nearly exact:
      - STEEP used hidden units of every MLP become GELU(s x) / s with s up to a third of `factor`: long-tailed, mostly
        zero and rarely huge. They are those that matter least among the used ones, and the bend of the GELU is all
        that they lose.
    """
    if factor < LEAST:
        raise UsageError(f"factor is {factor}, expected at least {LEAST:g}")
    generator = torch.Generator().manual_seed(seed)
    decoder = model.decoder
    masks = isinstance(decoder, MaskTransformer)
    with torch.no_grad():
        for block in [*model.encoder.blocks, *(decoder.blocks if masks else [])]:
            _grow(block.norm1, [block.attn.qkv.weight], factor, generator)
            _grow(block.norm2, [block.mlp.fc1.weight], factor, generator)
            _unbalance(block.attn, factor, generator)
            _steepen(block, factor / 3)
            _cancel(block, factor)
        _grow(model.encoder.norm, [decoder.proj_dec.weight if masks else decoder.head.weight], factor, generator)
        if masks:
            _grow(decoder.decoder_norm, [decoder.proj_patch.T, decoder.proj_classes.T], factor, generator)


def _factors(factor: float, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some channels of `width` and a factor for each."""
    channels = torch.randperm(width, generator=generator)[:CHANNELS]
    return channels, LEAST * (factor / LEAST) ** torch.rand(len(channels), generator=generator)


def _grow(norm: nn.LayerNorm, readers: Sequence[Tensor], factor: float, generator: torch.Generator) -> None:
    channels, factors = _factors(factor, len(norm.weight), generator)
    norm.weight[channels] *= factors
    norm.bias[channels] *= factors
    for weight in readers:
        weight[:, channels] /= factors


def _unbalance(attn: Attention, factor: float, generator: torch.Generator) -> None:
    width = attn.proj.in_features
    q, k, v = (attn.qkv.weight[i * width : (i + 1) * width] for i in range(3))
    q_bias, k_bias, v_bias = (attn.qkv.bias[i * width : (i + 1) * width] for i in range(3))
    channels, factors = _factors(factor, width, generator)
    for grown, bias in ((q, q_bias), (v, v_bias)):
        grown[channels] *= factors.sqrt()[:, None]
        bias[channels] *= factors.sqrt()
    k[channels] /= factors.sqrt()[:, None]
    k_bias[channels] /= factors.sqrt()
    attn.proj.weight[:, channels] /= factors.sqrt()


def _importance(block: Block) -> Tensor:
    """Of every hidden unit: 0 where it is unused."""
    return _spread(block) * block.mlp.fc2.weight.norm(dim=0)


def _spread(block: Block) -> Tensor:
    """About the standard deviation of every hidden unit's input: what a LayerNorm hands on has unit variance."""
    return (block.mlp.fc1.weight * block.norm2.weight).norm(dim=1)


def _steepen(block: Block, factor: float) -> None:
    importance = _importance(block)
    used = importance.argsort(stable=True)[int((importance == 0).sum()) :][:STEEP]
    steepness = (factor / _spread(block)[used]).clamp(min=1.0)
    block.mlp.fc1.weight[used] *= steepness[:, None]
    block.mlp.fc1.bias[used] *= steepness
    block.mlp.fc2.weight[:, used] /= steepness


def _cancel(block: Block, factor: float) -> None:
    """Pairs of pairs in unused units, along the inputs of the most important ones."""
    mlp, importance = block.mlp, _importance(block)
    unused = (importance == 0).nonzero()[:, 0]
    spread = _spread(block)
    for unit, (p, minus_p, t, minus_t) in zip(
        importance.argsort(descending=True, stable=True), unused[: len(unused) // 4 * 4].reshape(-1, 4), strict=False
    ):
        row, bias, column = mlp.fc1.weight[unit].clone(), mlp.fc1.bias[unit].clone(), mlp.fc2.weight[:, unit].clone()
        g = factor / 3 / spread[unit]
        for index, gain, sign in ((p, g, 1), (minus_p, g, -1), (t, 1, 1), (minus_t, 1, -1)):
            mlp.fc1.weight[index], mlp.fc1.bias[index] = sign * gain * row, sign * gain * bias
            mlp.fc2.weight[:, index] = column * sign * (1 / gain if index in (p, minus_p) else -1)


# ---------------------------------------------------------------------------------------------------------------------
# How badly spread a model's intermediates are
# ---------------------------------------------------------------------------------------------------------------------

TAPS = ("norm1", "attn.qkv", "attn.merge", "norm2", "mlp.fc1", "mlp.act", "add2")
"""Ends of the nodes in `spreads`."""


def spreads(model: Segmenter, images: Tensor) -> dict[str, tuple[float, float, float]]:
    """(kurtosis, largest over standard deviation, largest) of the encoder blocks' nodes, by TAPS: the worst block.

    A normal distribution has kurtosis 3. images uint8 [B, H, W, 3].
    """
    found: dict[str, tuple[float, float, float]] = {}

    def receive(node: str, value: Tensor) -> None:
        end = next((tap for tap in TAPS if node.startswith("encoder.blocks.") and node.endswith(tap)), None)
        if end is None:
            return
        x = value.double() - value.double().mean()
        std, largest = float(x.std(correction=0)), float(value.abs().max())
        now = (float((x**4).mean()) / std**4, float(x.abs().max()) / std, largest)
        old = found.get(end, (0.0, 0.0, 0.0))
        found[end] = (max(old[0], now[0]), max(old[1], now[1]), max(old[2], now[2]))

    with torch.no_grad(), tapped(model, receive):
        model.forward_scores(normalise(images, model.config))
    return {tap: found[tap] for tap in TAPS if tap in found}


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    return ended("make_hard.py", lambda: _make(args))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="make_hard.py", description="Make a float Segmenter deeper, or hard to quantize.")
    p.add_argument("checkpoint", type=Path, help="checkpoint.pth, or the folder it is in")
    p.add_argument("-o", "--output", type=Path, required=True, help="folder for checkpoint.pth and variant.yml")
    p.add_argument("--deepen", type=int, metavar="TIMES", help="every encoder block this many times; train it then")
    p.add_argument("--spare", type=int, default=16, help="hidden units of an MLP that --deepen frees (default: 16)")
    p.add_argument("--outliers", type=float, metavar="FACTOR", help="up to this much, at least 20")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--show", type=Path, metavar="IMAGE", help="print how spread the intermediates are on this image")
    return p


def _make(args: argparse.Namespace) -> None:
    if args.deepen is None and args.outliers is None:
        raise UsageError("nothing to do: give --deepen, --outliers or both")
    before = load_checkpoint(args.checkpoint)
    model = copy.deepcopy(before)
    if args.deepen is not None:
        model = deepen(model, args.deepen, args.spare)
    if args.outliers is not None:
        add_outliers(model, args.outliers, args.seed)
    save_checkpoint(model, args.output)
    config = model.config
    print(f"{args.output / 'checkpoint.pth'}: {config.n_layers} encoder blocks, {config.d_model} wide")
    if args.show is not None:
        images = windows(args.show, model_info(config, recipe_for("intseg"), "", for_model(config.n_cls, "", None)))
        was = spreads(before, images)
        print(f"{'worst block':12} {'kurtosis':>19} {'largest / std':>19} {'largest':>19}")
        for tap, now in spreads(model, images).items():
            columns = (f"{a:8.1f} -> {b:7.1f}" for a, b in zip(was[tap], now, strict=True))
            print(f"{tap:12} " + " ".join(columns))


if __name__ == "__main__":
    sys.exit(main())
