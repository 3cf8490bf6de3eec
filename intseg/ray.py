"""For pipelines of Ray Data: `Dataset.map_batches(intseg.ray.Segmenter, ...)` (docs/CLUSTER.md).

Ray itself is not imported here. `intseg infer --ray` and `intseg eval --ray` need no pipeline.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg import api
from intseg.batch.infer import labels_sha256
from intseg.errors import InputError

Array = NDArray[Any]


class Segmenter:
    """What `Dataset.map_batches` takes: made once by every worker, called with every batch.

    weights  as of `intseg.run`; every machine must be able to read a file
    column   of the images: uint8 [H, W, 3] each, as `ray.data.read_images(..., mode="RGB")` gives them, or the bytes of
             image files, as Parquet and WebDataset hold them
    backend, threads   as of `intseg.run`
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | api.Model | None = None,
        column: str = "image",
        backend: str = "auto",
        threads: int | None = 1,
    ) -> None:
        self.model = api.load(weights)
        self.column, self.backend, self.threads = column, backend, threads

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The batch with four more columns.

        labels         uint8 or uint16 [H, W]: class indices
        shares         float64 [C]: part of the pixels per class, in the order of the model's classes
        labels_sha256, image_sha256   of the class indices and of the decoded pixels, as in the records of `infer`
        Raises InputError for what is no image.
        """
        if self.column not in batch:
            raise InputError(f"the batch has no column {self.column!r}, but {', '.join(batch)}; name it with column=")
        results = [api.run(_image(value), self.model, self.backend, self.threads) for value in batch[self.column]]
        labels = np.empty(len(results), object)
        for i, result in enumerate(results):
            labels[i] = result.labels
        shares = [[result.shares().get(name, 0.0) for name in result.classes] for result in results]
        return {
            **batch,
            "labels": np.stack(list(labels)) if len({found.shape for found in labels}) == 1 else labels,
            "shares": np.array(shares, np.float64),
            "labels_sha256": np.array([labels_sha256(result.labels) for result in results]),
            "image_sha256": np.array([hashlib.sha256(result.image.tobytes()).hexdigest() for result in results]),
        }


def _image(value: Any) -> Any:
    return bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else np.asarray(value)
