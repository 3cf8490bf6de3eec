"""What a run gives: the labels of the pixels of an image, or its class."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intseg import store
from intseg.errors import UsageError, clip, printable
from intseg.images import decode as pictures
from intseg.images import labels as label_images
from intseg.images import overlay as overlays
from intseg.model import Model

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[Any]

_IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@dataclass(frozen=True)
class Ranked:
    """A class of an image: its number, its name, its logit."""

    index: int
    name: str
    logit: int


@dataclass(frozen=True, eq=False)
class Result:
    """What `run` found.

    labels   uint8 [H, W], uint16 above 256 classes: the class index of every pixel
    scores   int32 [h, w, C]: integer scores on the patch grid of the padded image; where the model merges in pixels,
             int16 [windows, h, w, C]: those of the windows (SPEC.md, section 7)
    image    uint8 [H, W, 3]: the decoded image
    model    what was run
    backend  "numpy" or "numba": the labels do not depend on it
    notes    what was done to decode the image, and to its size, one sentence each
    """

    labels: Array
    scores: Array
    image: NDArray[np.uint8]
    model: Model
    backend: str
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The class of an image, by its name. Raises UsageError where every pixel has its own."""
        raise self._refused("one class of the image", "labels or counts()")

    @property
    def logits(self) -> NDArray[np.int32]:
        """The logits of an image, int32 [C]. Raises UsageError where every patch has its own."""
        raise self._refused("logits of the image", "scores")

    def top(self, count: int = 5) -> tuple[Ranked, ...]:
        """The best classes of an image. Raises UsageError where every pixel has its own."""
        raise self._refused("best classes of the image", "shares()")

    def _refused(self, what: str, instead: str) -> UsageError:
        info = self.model.info
        return UsageError(f"{info.name} is for {info.task}: it gives no {what}; use {instead}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the labels index them."""
        return self.model.info.classes

    @property
    def palette(self) -> tuple[pictures.Colour, ...]:
        """(red, green, blue) of every class."""
        return self.model.info.palette

    def counts(self) -> dict[str, int]:
        """Pixels per class, of the classes found, the largest first."""
        from PIL import Image

        classes = len(self.classes)
        if self.labels.dtype == np.uint8:  # three times as fast as bincount, which widens every label first
            counts = np.array(Image.fromarray(self.labels).histogram()[:classes])
        else:
            counts = np.bincount(self.labels.ravel(), minlength=classes)
        order = np.argsort(-counts, kind="stable")
        return {self.classes[i]: int(counts[i]) for i in order if counts[i]}

    def shares(self) -> dict[str, float]:
        """Part of the pixels per class, from 0 to 1, of the classes found, the largest first."""
        return {name: count / self.labels.size for name, count in self.counts().items()}

    def overlay(
        self, opacity: float = 0.5, legend: bool = False, palette: Sequence[pictures.Colour] | None = None
    ) -> Image.Image:
        """The image under its class colours, with a legend below it if asked for.

        palette  other colours than the model's, one per class
        Raises UsageError for the opacity.
        """
        from PIL import Image

        palette = palette or self.palette
        picture = Image.fromarray(overlays.overlay(self.image, self.labels, palette, opacity))
        return overlays.add_legend(picture, self._legend(palette)) if legend else picture

    def png(self, palette: Sequence[pictures.Colour] | None = None, values: Array | None = None) -> bytes:
        """The labels as the bytes of a PNG file: indexed, with the palette; 16-bit grayscale for values above 255.

        palette  other colours than the model's, one per class
        values   uint16 [C]: stored in place of the class indices (`intseg.images.labels.stored_values`)
        """
        labels, colours = self.labels, tuple(palette or self.palette)
        if values is not None:
            labels, colours = label_images.store_as(labels, colours, values)
        return label_images.labels_png(labels, colours)

    def save(
        self,
        path: str | os.PathLike[str],
        palette: Sequence[pictures.Colour] | None = None,
        values: Array | None = None,
    ) -> None:
        """Write the labels as PNG, as `png` gives them.

        Raises UsageError unless the name ends in .png, InputError when it cannot be written; nothing is left then.
        """
        if image_format(path) != "PNG":
            raise UsageError(f"{os.fspath(path)}: labels are written without loss; give a name that ends in .png")
        store.write_atomically(Path(path), self.png(palette, values))

    def save_overlay(
        self,
        path: str | os.PathLike[str],
        opacity: float = 0.5,
        legend: bool = True,
        palette: Sequence[pictures.Colour] | None = None,
    ) -> None:
        """Write the overlay, with its legend unless that is not wanted, as .png or .jpg. Raises as `save`."""
        kind = image_format(path)
        store.write_atomically(Path(path), overlays.encode(self.overlay(opacity, legend, palette), kind))

    def to_pil(self) -> Image.Image:
        """The labels as a Pillow image: mode "P" with the palette, "I;16" for more than 256 classes."""
        return label_images.labels_image(self.labels, self.palette)

    def to_hf(self) -> list[dict[str, Any]]:
        """What the Hugging Face pipeline "image-segmentation" returns for semantic segmentation.

        return  per class found, in the order of the classes: {"score": None, "label": its name,
                "mask": Pillow image of mode "L", 255 where the class is, else 0}
        """
        return [
            {"score": None, "label": self.classes[i], "mask": label_images.mask(self.labels, i)}
            for i in np.unique(self.labels).tolist()
        ]

    def _repr_png_(self) -> bytes:
        """The overlay with its legend, for notebooks."""
        return overlays.encode(self.overlay(legend=True), "PNG")

    def _repr_html_(self) -> str:
        """The overlay with its legend and a caption, for notebooks; nothing is loaded from elsewhere."""
        data = base64.b64encode(self._repr_png_()).decode()
        text = html.escape(repr(self)[1:-1])
        return (
            f'<figure style="margin:0"><img alt="{text}" src="data:image/png;base64,{data}" style="max-width:100%">'
            f"<figcaption>{text}</figcaption></figure>"
        )

    def _legend(self, palette: Sequence[pictures.Colour]) -> list[overlays.LegendEntry]:
        colours = dict(zip(self.classes, palette, strict=True))
        shares = self.shares().items()
        return [
            overlays.LegendEntry(colours[name], f"{clip(name, 32)} {overlays.percent(share)}") for name, share in shares
        ]

    def __repr__(self) -> str:
        height, width = self.labels.shape
        found = ", ".join(f"{name} {share:.0%}" for name, share in list(self.shares().items())[:3])
        return printable(f"<intseg.Result {width} x {height} by {self.model.info.name} ({self.backend}): {found}>")


def _no_pixels(what: str) -> Callable[..., Any]:
    """A method that says what a classifier cannot give."""

    def refuse(self: Result, *args: Any, **kwargs: Any) -> Any:
        raise self._refused(what, "label, top() or logits")

    refuse.__doc__ = f"Raises UsageError: a classifier gives no {what}."
    return refuse


@dataclass(frozen=True, eq=False, repr=False)
class ClassResult(Result):
    """What `run` found with a classifier.

    labels   uint8 [1, 1], uint16 above 256 classes: the index of the class, as traces and packs have it
    scores   int32 [1, 1, C]: the logits, likewise
    image    uint8 [H, W, 3]: the decoded image
    notes    what was done to decode the image, and which part of it was seen at which size
    """

    @property
    def label(self) -> str:
        """The name of the class with the largest logit; of equal ones the first."""
        return self.top(1)[0].name

    @property
    def logits(self) -> NDArray[np.int32]:
        """int32 [C]."""
        found: NDArray[np.int32] = self.scores.reshape(-1)
        return found

    def top(self, count: int = 5) -> tuple[Ranked, ...]:
        """The `count` classes with the largest logits, in falling order; of equal ones the lower class first."""
        if count < 1:
            raise UsageError(f"top({count}), expected at least 1")
        logits = self.logits
        best = np.argsort(-logits.astype(np.int64), kind="stable")[:count]
        return tuple(Ranked(int(i), self.classes[i], int(logits[i])) for i in best)

    counts = shares = _no_pixels("shares of the pixels")
    overlay = save_overlay = _no_pixels("overlay")
    png = save = to_pil = _no_pixels("label image")

    def to_hf(self) -> list[dict[str, Any]]:
        """What the Hugging Face pipeline "image-classification" returns: {"score": None, "label": name}, the best 5."""
        return [{"score": None, "label": found.name} for found in self.top()]

    def _repr_png_(self) -> bytes:
        """The image, for notebooks."""
        from PIL import Image

        return overlays.encode(Image.fromarray(self.image), "PNG")

    def __repr__(self) -> str:
        height, width, _ = self.image.shape
        found = ", ".join(f"{clip(best.name, 32)} {best.logit}" for best in self.top(3))
        return printable(f"<intseg.Result {width} x {height} by {self.model.info.name} ({self.backend}): {found}>")


def image_format(path: str | os.PathLike[str]) -> str:
    """By the ending of a file name: "PNG" or "JPEG". Raises UsageError for another ending."""
    try:
        return _IMAGE_FORMATS[Path(path).suffix.lower()]
    except KeyError:
        raise UsageError(f"{os.fspath(path)}: pictures are written as {', '.join(_IMAGE_FORMATS)}; rename it") from None
