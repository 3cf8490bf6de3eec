"""The training loop of tools/train.py and tools/qat.py: data, augmentation, schedule, checkpoints, curves.

Every random choice of step s comes from a generator seeded with (seed, s), so nothing but the step number, the
parameters and the optimizer's state has to be kept: a resumed run takes the same steps as an unbroken one.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from intseg import store
from intseg.batch import datasets
from intseg.errors import InputError, IntsegError, MismatchError
from intseg.images import decode as pictures
from intseg.images import overlay as overlays
from intseg.images.labels import Labelling, truth
from intseg.progress import Progress

IGNORE = 255
"""Label of pixels that the loss does not see."""

Scores = Callable[[nn.Module, Tensor], Tensor]
"""(model, uint8 [B, H, W, 3]) -> float scores [B, h, w, C] on the patch grid; of a classifier [B, C]."""


_BLOCK: Final = re.compile(r"encoder\.blocks\.(\d+)\.")
_EMBEDDING: Final = ("encoder.patch_embed", "encoder.pos_embed", "encoder.cls_token", "encoder.dist_token")


class DivergedError(IntsegError):
    """The loss is not a number any more; the last good checkpoint is kept."""

    exit_code = 1


@dataclass(frozen=True)
class Settings:
    """What decides a run besides data and model. A checkpoint continues only under equal settings.

    schedule        "cosine" or "poly" (power 0.9), to zero at the last step, after a linear warm-up
    scale           factor of the image before the crop, drawn evenly on a logarithmic axis
    colour          largest relative change of brightness, contrast and saturation
    class_power     classes weigh frequency^-class_power, normalised to mean one over the pixels
    ema             decay of the moving average of parameters that is saved and measured; 0 for the last ones
    drop_path       largest probability to skip a branch, growing linearly with depth
    layer_decay     each encoder block learns at this times the rate of the next one, the embedding slowest
    precision       "float32", or "bfloat16": matrix products of the training steps only. Parameters, their average,
                    the optimizer and every measurement stay float32, so it does not touch what eval mode computes
    distill         part of the loss that is the distance (KL) from a teacher's shares, in place of that from the labels
    model           what is trained, for --resume: a state of other bits would be taken for this one's
    hold_out        every so many-th image is not trained on; 0 for none
    """

    steps: int
    batch: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 200
    schedule: str = "cosine"
    crop: tuple[int, int] = (256, 256)
    scale: tuple[float, float] = (0.5, 1.6)
    colour: float = 0.3
    class_power: float = 0.33
    ema: float = 0.999
    drop_path: float = 0.1
    clip: float = 1.0
    seed: int = 0
    precision: str = "float32"
    layer_decay: float = 1.0
    distill: float = 0.0
    model: str = ""
    hold_out: int = 0


@dataclass(frozen=True)
class Examples:
    """A labelled data set; images are decoded on use and the last few hundred kept."""

    pairs: tuple[datasets.Pair, ...]
    n_cls: int
    labelling: Labelling

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> tuple[Image.Image, Image.Image]:
        """RGB image and labels (mode L, IGNORE where not counted). Raises InputError naming a bad file."""
        return _load(self, index)

    def survey(self) -> tuple[NDArray[np.float64], int]:
        """Share of the counted pixels per class, at least one pixel each; and the median short side in pixels."""
        counts, sides = np.ones(self.n_cls), []
        for index in range(len(self.pairs)):
            image, labels = self.load(index)
            stored = np.asarray(labels)
            counts += np.bincount(stored[stored != IGNORE], minlength=self.n_cls)
            sides.append(min(image.size))
        return counts / counts.sum(), int(np.median(sides))


@dataclass(frozen=True)
class Windows:
    """Windows without labels, as examples: what they should give a teacher says. images uint8 [N, H, W, 3]."""

    images: Tensor
    n_cls: int

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> tuple[Image.Image, Image.Image]:
        """A window, and IGNORE everywhere."""
        rgb = Image.fromarray(self.images[index].numpy())
        return rgb, Image.new("L", rgb.size, IGNORE)

    def survey(self) -> tuple[NDArray[np.float64], int]:
        """No class is more frequent than another; and the short side of a window."""
        return np.full(self.n_cls, 1 / self.n_cls), min(self.images.shape[1:3])


@lru_cache(maxsize=512)
def _load(examples: Examples, index: int) -> tuple[Image.Image, Image.Image]:
    pair = examples.pairs[index]
    picture = pictures.decode(pair.image, (127, 127, 127))
    labels, _ = truth(pair.labels, picture, examples.n_cls, examples.labelling, str(pair.image))
    return Image.fromarray(picture.rgb), Image.fromarray(np.where(labels < 0, IGNORE, labels).astype(np.uint8))


def examples(data: datasets.Dataset, n_cls: int) -> Examples:
    """A split of a data set. Raises MismatchError for a model of other classes."""
    if data.n_cls not in (None, n_cls):
        raise MismatchError(f"the data set has {data.n_cls} classes, the model has {n_cls}, expected equal counts")
    return Examples(data.pairs, n_cls, data.labelling)


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


def batch(data: Examples | Windows, settings: Settings, step: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [B, H, W, 3] and labels int64 [B, H, W] of a step; the same for the same arguments."""
    count = len(data)
    crops = []
    for i in range(step * settings.batch, (step + 1) * settings.batch):
        order = np.random.default_rng([settings.seed, 1, i // count]).permutation(count)
        rng = np.random.default_rng([settings.seed, 2, i])
        crops.append(augmented(*data.load(int(order[i % count])), settings, rng))
    images, labels = zip(*crops, strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels).astype(np.int64))


def augmented(
    image: Image.Image, labels: Image.Image, settings: Settings, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One crop: scaled, cut, perhaps mirrored, recoloured. Where the image ends, grey and IGNORE fill the crop."""
    low, high = settings.scale
    factor = math.exp(rng.uniform(math.log(low), math.log(high)))
    width, height = (max(1, round(side * factor)) for side in image.size)
    rows, columns = settings.crop
    top, left = (int(rng.integers(0, max(0, a - b) + 1)) for a, b in ((height, rows), (width, columns)))
    box = tuple(side / factor for side in (left, top, min(left + columns, width), min(top + rows, height)))
    box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
    size = (min(columns, width), min(rows, height))
    rgb = np.full((rows, columns, 3), 127, np.uint8)
    truth = np.full((rows, columns), IGNORE, np.uint8)
    rgb[: size[1], : size[0]] = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))
    truth[: size[1], : size[0]] = np.asarray(labels.resize(size, Image.Resampling.NEAREST, box=box))
    if rng.random() < 0.5:
        rgb, truth = rgb[:, ::-1], truth[:, ::-1]
    return _recoloured(rgb, settings.colour, rng), np.ascontiguousarray(truth)


def _recoloured(rgb: NDArray[np.uint8], strength: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    brightness, contrast, saturation = 1 + strength * rng.uniform(-1, 1, 3)
    x = rgb.astype(np.float32) * brightness
    x = (x - x.mean()) * contrast + x.mean()
    grey = x.mean(axis=2, keepdims=True)
    return np.clip(np.round(grey + (x - grey) * saturation), 0, 255).astype(np.uint8)


def rate(settings: Settings, step: int) -> float:
    """Learning rate of a step."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (0.5 + 0.5 * math.cos(math.pi * done) if settings.schedule == "cosine" else (1 - done) ** 0.9)


# ---------------------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------------------


class Trainer:
    """Steps, checkpoints and measurements of one run.

    model      what is trained, in place
    scores     how it is run on uint8 images
    upsample   "bilinear" or "nearest": how scores reach the labels' size in the loss
    folder     state.pth (everything to go on), log.jsonl (one line a report), curves.png
    on_step    called with (model, step) before every step, e.g. to freeze ranges
    teacher    what uint8 images should give, in place of labels: scores [B, h, w, C]; used as far as `distill` says
    rates      of parameters, by name, that learn at a multiple of the rate and do not decay
    """

    def __init__(
        self,
        model: nn.Module,
        scores: Scores,
        data: Examples | Windows,
        settings: Settings,
        folder: Path,
        device: str = "cpu",
        upsample: str = "bilinear",
        on_step: Callable[[nn.Module, int], None] = lambda model, step: None,
        teacher: Callable[[Tensor], Tensor] | None = None,
        rates: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.teacher = teacher
        self.model, self.scores, self.data, self.settings = model.to(device), scores, data, settings
        self.folder, self.device, self.upsample, self.on_step = folder, device, upsample, on_step
        self.average = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.optimizer = torch.optim.AdamW(_groups(model, settings, rates), lr=settings.lr)
        frequencies, self.short_side = data.survey()
        weights = frequencies**-settings.class_power
        weights /= (weights * frequencies).sum()
        self.weights = torch.tensor(weights, dtype=torch.float32, device=device)
        self.step, self.log = 0, list[dict[str, float]]()

    def run(
        self, checkpoint_every: int, measure: Callable[[nn.Module], Mapping[str, float]] = lambda model: {}
    ) -> None:
        """Train to the last step; every `checkpoint_every` steps save, and measure the averaged model.

        measure  what it finds goes to the log, by name; numbers that are not finite do not: JSON has no NaN

        Raises DivergedError, after which state.pth is the last good one.
        """
        losses: list[float] = []
        progress = Progress("training", self.settings.steps, "step", self.step)
        with ThreadPoolExecutor(1) as pool, progress:
            for images, labels in _prefetched(pool, self._batch, range(self.step, self.settings.steps)):
                losses.append(self.take_step(images, labels))
                progress.update()
                if self.step % checkpoint_every == 0 or self.step == self.settings.steps:
                    self.report(measure, {"loss": sum(losses) / len(losses), "lr": rate(self.settings, self.step - 1)})
                    losses.clear()
                    self.save()
                    progress.say(json.dumps(self.log[-1]))

    def report(self, measure: Callable[[nn.Module], Mapping[str, float]], known: Mapping[str, float]) -> None:
        """Add to the log what is known and what is measured of the averaged model now."""
        with self.averaged():
            found = measure(self.model)
        finite = {name: value for name, value in found.items() if math.isfinite(value)}
        self.log.append({"step": self.step, **known, **finite})

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        return batch(self.data, self.settings, step)

    def take_step(self, images: Tensor, labels: Tensor) -> float:
        """One optimizer step; returns the loss. Raises DivergedError when it is not finite."""
        self.on_step(self.model, self.step)
        self.model.train()
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.settings, self.step) * group["share"]
        mixed = torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"
        )
        images = images.to(self.device)
        with DropPath(self.model, self.settings.drop_path), mixed:
            out = self.scores(self.model, images)
        loss = self._loss(out, images, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"loss is {value} at step {self.step}: lower the learning rate; "
                f"the last good checkpoint is {self.folder / 'state.pth'}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.step += 1
        decay = min(self.settings.ema, self.step / (self.step + 10))
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter.detach(), 1 - decay)
        return value

    def _loss(self, scores: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Of both parts what the settings want."""
        share, losses = self.settings.distill, list[Tensor]()
        if share < 1:
            losses.append((1 - share) * self._from_labels(scores, labels.to(self.device)))
        if share > 0:
            assert self.teacher is not None
            losses.append(share * divergence(self.teacher(images), scores))
        return torch.stack(losses).sum()

    def _from_labels(self, scores: Tensor, labels: Tensor) -> Tensor:
        options: dict[str, Any] = {"mode": "nearest"}
        if self.upsample == "bilinear":
            options = {"mode": "bilinear", "align_corners": False}
        logits = F.interpolate(scores.permute(0, 3, 1, 2).float(), size=labels.shape[1:], **options)
        return F.cross_entropy(logits, labels, weight=self.weights, ignore_index=IGNORE)

    def averaged(self) -> _Swapped:
        """A context in which the model holds the averaged parameters and is in eval mode."""
        return _Swapped(self.model, self.average)

    def save(self) -> None:
        """state.pth, log.jsonl and curves.png, each whole or not at all."""
        buffer = io.BytesIO()
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "log": self.log,
        }
        torch.save(state, buffer)
        store.write_atomically(self.folder / "state.pth", buffer.getvalue())
        lines = "".join(json.dumps(entry) + "\n" for entry in self.log)
        store.write_atomically(self.folder / "log.jsonl", lines.encode())
        store.write_atomically(self.folder / "curves.png", overlays.encode(curves(self.log), "PNG"))

    def resume(self) -> None:
        """Go on from state.pth. Raises InputError for an unreadable file, MismatchError for other settings."""
        path = self.folder / "state.pth"
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except OSError as error:
            raise InputError(f"{path}: cannot read: {error.strerror}; start without --resume") from None
        except Exception as error:  # torch raises many types for a damaged file
            raise InputError(f"{path}: not a training state ({type(error).__name__}); start without --resume") from None
        found = Settings(**state["settings"])
        ours = json.loads(json.dumps(asdict(self.settings)))
        theirs = json.loads(json.dumps(asdict(found)))
        for key in ours:
            if ours[key] != theirs[key]:
                raise MismatchError(
                    f"{path}: {key} was {theirs[key]}, now {ours[key]}; give the same options to resume"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step, self.log = state["average"], state["step"], state["log"]


def divergence(teacher: Tensor, scores: Tensor) -> Tensor:
    """KL of the shares that scores [..., C] give to classes from those of a teacher, the mean over all but classes."""
    shares, expected = (x.float().flatten(0, -2).log_softmax(-1) for x in (scores, teacher))
    return F.kl_div(shares, expected, reduction="batchmean", log_target=True)


class _Swapped:
    """Swaps a model's parameters for others on entry and back on exit."""

    def __init__(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        self.model, self.values = model, values

    def _swap(self) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                kept = parameter.detach().clone()
                parameter.copy_(self.values[name])
                self.values[name].copy_(kept)

    def __enter__(self) -> nn.Module:
        self._swap()
        return self.model.eval()

    def __exit__(self, *error: object) -> None:
        self._swap()


def _groups(
    model: nn.Module, settings: Settings, rates: Mapping[str, float] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for biases, norms and learned tokens; `share` of the rate by depth."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    layers = 1 + max((int(m[1]) for name, _ in model.named_parameters() if (m := _BLOCK.match(name))), default=-1)
    for name, parameter in model.named_parameters():
        token = any(word in name for word in ("token", "embed", "cls_emb")) and "patch_embed" not in name
        decay = 0.0 if parameter.ndim < 2 or token or name in rates else settings.weight_decay
        block = _BLOCK.match(name)
        below = layers - int(block[1]) if block else (layers + 1) * name.startswith(_EMBEDDING)
        groups.setdefault((settings.layer_decay**below * rates.get(name, 1.0), decay), []).append(parameter)
    return [{"params": found, "weight_decay": decay, "share": share} for (share, decay), found in groups.items()]


def _prefetched(
    pool: ThreadPoolExecutor, load: Callable[[int], tuple[Tensor, Tensor]], steps: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in order, the next one made while the present one is used."""
    ahead = pool.submit(load, steps[0]) if steps else None
    for step in steps:
        assert ahead is not None
        current = ahead.result()
        ahead = pool.submit(load, step + 1) if step + 1 in steps else None
        yield current


class DropPath:
    """While open, branches of the float model's blocks are skipped at random, per image (stochastic depth)."""

    def __init__(self, model: nn.Module, largest: float) -> None:
        names = [name for name, _ in model.named_modules() if name.endswith((".attn.proj", ".mlp.fc2"))]
        self.rates = {name: largest * i / max(1, len(names) - 1) for i, name in enumerate(names)}
        self.model, self.handles = model, list[Any]()

    def __enter__(self) -> None:
        for name, rate_ in self.rates.items():
            if rate_ > 0:
                hook = self._hook(rate_)
                self.handles.append(self.model.get_submodule(name).register_forward_hook(hook))

    @staticmethod
    def _hook(rate_: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def drop(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
            keep = torch.rand(len(out), 1, 1, device=out.device) >= rate_
            return out * keep / (1 - rate_)

        return drop

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def curves(log: Sequence[dict[str, float]], width: int = 900, height: int = 360) -> Image.Image:
    """Loss (left) and mIoU (right) over the steps, as a picture."""
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for i, (key, colour) in enumerate((("loss", (200, 60, 40)), ("mIoU", (40, 90, 180)))):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        left, top, right, bottom = i * width // 2 + 60, 40, (i + 1) * width // 2 - 20, height - 40
        draw.rectangle((left, top, right, bottom), outline=(180, 180, 180))
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        low, high = min(values), max(values)
        span = (high - low) or 1.0
        line = [
            (left + (right - left) * s / max(steps), bottom - (bottom - top) * (v - low) / span)
            for s, v in zip(steps, values, strict=True)
        ]
        draw.text(
            (left, 12), f"{key}: last {values[-1]:.3f}, best {(min if key == 'loss' else max)(values):.3f}", fill=colour
        )
        draw.text((left - 50, top - 6), f"{high:.3g}", fill="black")
        draw.text((left - 50, bottom - 6), f"{low:.3g}", fill="black")
        draw.text((right - 40, bottom + 8), str(max(steps)), fill="black")
        draw.line(line, fill=colour, width=2) if len(line) > 1 else draw.point(line, fill=colour)
    return picture
