"""variant.yml: what stands beside a published checkpoint."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from intseg import files
from intseg.errors import InputError
from intseg.tools.twin.config import HEAD_DIM, CheckpointError, Pair, SegmenterConfig, backbone_defaults, backbone_name


class VariantLoader(yaml.SafeLoader):
    """Safe YAML plus tuples: published files write `image_size: !!python/tuple [512, 512]`."""


def _construct_tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


VariantLoader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)


@dataclass(frozen=True)
class Variant:
    """The parts of variant.yml that matter here; all empty where there is no file."""

    name: str  # for messages
    net: dict[str, Any]
    decoder: dict[str, Any]
    inference: dict[str, Any]
    dataset: dict[str, Any]

    @classmethod
    def read(cls, path: str | os.PathLike[str] | None) -> "Variant":
        """Read the file; None stands for a checkpoint that has none."""
        if path is None:
            return cls("no variant.yml", {}, {}, {}, {})
        try:
            raw = yaml.load(files.read_text(path, limit=2**20), Loader=VariantLoader)
        except (InputError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{path}: cannot be read as YAML ({reason}); use the published file") from None
        net = _section(raw, "net_kwargs", path)
        if not net:
            raise CheckpointError(f"{path}: no net_kwargs, expected them in a variant.yml; use the published file")
        net = backbone_defaults(str(net.get("backbone"))) | net
        sections = (_section(raw, key, path) for key in ("inference_kwargs", "dataset_kwargs"))
        return cls(str(path), net, _section(net, "decoder", path), *sections)

    def given(self, values: Mapping[str, Any] | None) -> "Variant":
        """The same with values of net_kwargs that the user states."""
        return dataclasses.replace(self, net={**self.net, **values}) if values else self

    def agree(self, key: str, found: object, tensor: str, values: dict[str, Any] | None = None) -> None:
        """A value that is stated has to be the one that the tensors show."""
        values = self.net if values is None else values
        if key in values and values[key] != found:
            raise CheckpointError(
                f"{self.name}: {key} is {values[key]!r}, but {tensor} in the checkpoint says {found!r}; "
                "use the variant.yml that came with this checkpoint"
            )

    def pair(self, values: dict[str, Any], key: str) -> Pair | None:
        """`512` or `[512, 512]` as (rows, columns); None where it is not stated."""
        value = values.get(key)
        pair = (value, value) if isinstance(value, int) else value
        if pair is None:
            return None
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(type(v) is int and v > 0 for v in pair):
            return pair[0], pair[1]
        raise CheckpointError(f"{self.name}: {key} is {value!r}, expected a positive integer or two; correct it")

    def im_size(self, image: Pair) -> int | None:
        """Short side of the training images; None where it is not stated.

        Earlier versions of `save_checkpoint` wrote the least of image_size without knowing, and no data set beside it.
        """
        stated = self.pair(self.dataset, "image_size")
        found = stated or self.pair(self.inference, "im_size")
        return None if found is None or (not stated and min(found) == min(image)) else min(found)

    def heads(self, values: dict[str, Any], what: str, width: int, notes: list[str]) -> int:
        """Stated heads, otherwise one for every 64 channels: no tensor shows them."""
        heads = values.get("n_heads", max(1, width // HEAD_DIM))
        if type(heads) is not int or heads < 1 or width % heads:
            raise CheckpointError(
                f"{self.name}: {what} n_heads is {heads!r}, expected a divisor of the width {width}; set it"
            )
        if "n_heads" not in values and what == "encoder":
            notes.append(f"encoder n_heads = {heads}: one per {HEAD_DIM} channels (--heads)")
        return heads


def _section(raw: object, key: str, path: object) -> dict[str, Any]:
    section = raw.get(key, {}) if isinstance(raw, dict) else None
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: {key} is not a mapping, expected one in a variant.yml; use the published file")
    return section


def variant_of(c: SegmenterConfig) -> dict[str, Any]:
    """variant.yml of a configuration. Keys unknown to the original code appear only where the model needs them."""
    decoder: dict[str, Any] = {"name": c.decoder}
    if c.decoder == "mask_transformer":
        decoder |= {"n_layers": c.dec_layers, "dropout": 0.0, "drop_path_rate": 0.0}
        if c.dec_heads != c.d_decoder // HEAD_DIM:
            decoder["n_heads"] = c.dec_heads
    net = {
        "backbone": backbone_name(c),
        "image_size": list(c.image_size),
        "patch_size": c.patch,
        "d_model": c.d_model,
        "n_heads": c.n_heads,
        "n_layers": c.n_layers,
        "n_cls": c.n_cls,
        "normalization": c.normalization,
        "distilled": c.distilled,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "decoder": decoder,
    }
    if c.decoder == "mask_transformer" and c.dec_norm_eps != 1e-5:
        decoder["norm_eps"] = c.dec_norm_eps
    if c.norm_eps != 1e-5:
        net["norm_eps"] = c.norm_eps
    if c.pos_mode != "bilinear":
        net["pos_mode"] = c.pos_mode
    inference: dict[str, Any] = {"window_size": _plain(c.window), "window_stride": _plain(c.stride)}
    dataset: dict[str, Any] = {"normalization": c.normalization}
    if c.im_size is not None:
        dataset["image_size"] = inference["im_size"] = c.im_size
    return {"net_kwargs": net, "dataset_kwargs": dataset, "inference_kwargs": inference}


def _plain(pair: Pair) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)
