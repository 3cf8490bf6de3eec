"""What the config text in a checkpoint of mmsegmentation says that its tensors cannot; read without running it.

The text is Python: assignments of dict(...), lists and constants. They are read from the syntax tree; what is anything
else counts as not stated. What it says and the graph cannot do is refused, since the model would be another one.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from intseg.tools.twin.config import STATS, CheckpointError
from intseg.tools.twin.variant import Variant
from intseg.windows import LONG

Section = dict[str, Any]

_UNKNOWN: Final = object()

DEFAULT_HEADS: Final = 12
"""Of mmsegmentation's VisionTransformer."""


def sections(text: str) -> Section:
    """The assignments of a config, by name; empty where the text is no Python."""
    found: Section = {}
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return found
    for line in body:
        if isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = _value(line.value, found)
    return found


def _value(node: ast.expr, known: Section) -> Any:
    """A constant, a name that was assigned before, a list, a tuple, a dict, or a call of dict."""
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return known.get(name, _UNKNOWN)
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
        case ast.List(items) | ast.Tuple(items):
            return [_value(item, known) for item in items]
        case ast.Dict(keys, values):
            pairs = zip(keys, values, strict=True)
            return {key.value: _value(value, known) for key, value in pairs if isinstance(key, ast.Constant)}
        case ast.Call(ast.Name("dict"), [], keywords):
            return {word.arg: _value(word.value, known) for word in keywords if word.arg is not None}
    return _UNKNOWN


def stated(raw: object, variant: Variant, file: Path, notes: list[str]) -> Variant:
    """`variant` completed by the config in raw["meta"], which gives way to it. Raises CheckpointError."""
    meta = raw.get("meta") if isinstance(raw, dict) else None
    cfg = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), None) if meta else None
    config = sections(cfg or "")
    model = _dict(config, "model")
    if not model:
        return variant
    backbone, head = _dict(model, "backbone"), _dict(model, "decode_head")
    if problem := next(_impossible(model, backbone, head), None):
        raise CheckpointError(f"{file}: its config says {problem}; convert a model without it")
    net = _renamed(backbone, {"num_heads": "n_heads", "img_size": "image_size", "interpolate_mode": "pos_mode"})
    if "VisionTransformer" in str(backbone.get("type")):
        net.setdefault("n_heads", DEFAULT_HEADS)
    decoder = _renamed(head, {"num_heads": "n_heads"})
    for target, section in ((net, backbone), (decoder, head)):
        if isinstance(eps := _dict(section, "norm_cfg").get("eps"), int | float):
            target["norm_eps"] = float(eps)
    net |= _pixels(config, model, file)
    test = _dict(model, "test_cfg")
    inference = _renamed(test, {"crop_size": "window_size", "stride": "window_stride"})
    if test.get("mode", "whole") == "whole":
        notes.append("mmsegmentation runs it on whole images: here windows of the position embedding's size (--window)")
    short = _short_side(config, notes)
    return dataclasses.replace(
        variant,
        name=variant.name if variant.net else f"{file}, its config",
        net={**net, **variant.net},
        decoder={**decoder, **variant.decoder},
        inference={**inference, **variant.inference},
        dataset={"image_size": short, **variant.dataset} if short else variant.dataset,
    )


def _impossible(model: Section, backbone: Section, head: Section) -> Iterator[str]:
    """What the graph cannot do, or the network is not."""
    transformers = {"backbone": backbone}
    if "MaskTransformer" in str(head.get("type")):
        transformers["decode_head"] = head
    for where, section in transformers.items():
        for key, expected in (("act_cfg", "GELU"), ("norm_cfg", "LN")):
            found = _dict(section, key).get("type", expected)
            if found not in (expected, _UNKNOWN):
                yield f"{where}.{key} is {found}, expected {expected}"
    indices, layers = backbone.get("out_indices", -1), backbone.get("num_layers", 12)
    if isinstance(indices, list) and len(indices) == 1:
        indices = indices[0]
    if indices is not _UNKNOWN and indices not in (-1, layers - 1 if isinstance(layers, int) else -1):
        yield f"backbone.out_indices is {indices}, expected the last block, {layers - 1}"
    for where, section, key, default, value in (
        ("backbone", backbone, "with_cls_token", True, True),
        ("backbone", backbone, "final_norm", True, True),
        ("backbone", backbone, "pre_norm", False, False),
        ("backbone", backbone, "patch_norm", False, False),
        ("backbone", backbone, "num_fcs", 2, 2),
        ("decode_head", head, "num_fcs", 2, 2),
        ("decode_head", head, "align_corners", False, False),
        *((("decode_head", head, "num_convs", 2, 0),) if head.get("type") == "FCNHead" else ()),
    ):
        found = section.get(key, default)
        if section and found is not _UNKNOWN and found != value:
            yield f"{where}.{key} is {found}, expected {value}"
    mode = backbone.get("interpolate_mode", "bicubic")
    if mode not in ("bicubic", "bilinear", _UNKNOWN):
        yield f"backbone.interpolate_mode is {mode}, expected bicubic or bilinear"
    yield from _one_channel(head)


def _one_channel(head: Section) -> Iterator[str]:
    if 1 in (head.get("out_channels"), head.get("num_classes")):
        threshold = head.get("threshold", 0.3)
        yield (
            f"one output channel, sigmoid and a threshold of {threshold}, where a class map is an argmax that would "
            "always be 0, expected a channel for each of two classes or more"
        )


def _renamed(section: Section, names: Mapping[str, str]) -> Section:
    return {new: section[old] for old, new in names.items() if section.get(old, _UNKNOWN) is not _UNKNOWN}


def _pixels(config: Section, model: Section, file: Path) -> Section:
    """Mean and standard deviation by their name in STATS; of version 1.x BGR is the default, of 0.x RGB."""
    preprocessor = _dict(model, "data_preprocessor") or _dict(config, "data_preprocessor")
    found = preprocessor or _dict(config, "img_norm_cfg")
    mean, std = found.get("mean"), found.get("std")
    if preprocessor and mean is None:
        raise CheckpointError(
            f"{file}: its config has no mean of pixels, expected that of {' or '.join(STATS)}; convert another model"
        )
    if not isinstance(mean, list) or not isinstance(std, list):
        return {}
    swapped = (found.get("bgr_to_rgb"), found.get("rgb_to_bgr")) if preprocessor else (found.get("to_rgb", True),)
    if not any(swapped):
        raise CheckpointError(f"{file}: its config feeds BGR, expected RGB; swap the channels of patch_embed first")
    for name, stats in STATS.items():
        pairs = zip((*mean, *std), (*stats[0], *stats[1]), strict=False)
        if len(mean) == len(std) == 3 and all(abs(float(a) / 255 - b) < 2e-3 for a, b in pairs):
            return {"normalization": name}
    raise CheckpointError(f"{file}: its config has mean {mean}, std {std}, expected those of {' or '.join(STATS)}")


def _short_side(config: Section, notes: list[str]) -> int | None:
    """Of the images that are tested, where they keep their shape; a note says what is done otherwise."""
    lines = config.get("test_pipeline")
    for line in lines if isinstance(lines, list) else ():
        scale = line.get("scale", line.get("img_scale")) if isinstance(line, dict) else None
        if isinstance(scale, list) and len(scale) == 2 and all(type(side) is int and side > 0 for side in scale):
            short, long = sorted(scale)
            if not line.get("keep_ratio", "img_scale" in line):
                notes.append(f"mmsegmentation makes every image {scale[0]} x {scale[1]}: here as they are (--scale)")
                return None
            if long != LONG * short:
                notes.append(f"mmsegmentation's long side is at most {long}: here {LONG * short}")
            return short
    return None


def _dict(section: Section, key: str) -> Section:
    found = section.get(key)
    return found if isinstance(found, dict) else {}
