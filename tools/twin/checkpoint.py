"""Reading and writing checkpoints of the float Segmenter, as published (rstrudel/segmenter).

`checkpoint.pth` holds `{"model": state_dict}` and lies beside `variant.yml`. Checkpoints with mmsegmentation's names
load too.

What the two sources do differently, all of it in `SegmenterConfig`:

                              rstrudel/segmenter     mmsegmentation
    LayerNorm eps, encoder    1e-5                   1e-6 (its configs)
    LayerNorm eps, decoder    1e-5                   1e-5
    position embedding        bilinear               bicubic
"""

import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from intseg.files import write_atomically
from intseg.tools.twin import mmseg
from intseg.tools.twin.config import HEAD_DIM, CheckpointError, Decoder, Pair, SegmenterConfig, sides
from intseg.tools.twin.containers import few, read_file, require_floats, state_of
from intseg.tools.twin.names import UNUSED, State, published_names
from intseg.tools.twin.segmenter import LoadInfo, Segmenter
from intseg.tools.twin.variant import Variant, variant_of


def load_checkpoint(
    path: str | os.PathLike[str],
    variant: str | os.PathLike[str] | None = None,
    key: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> Segmenter:
    """Read a checkpoint into a model in evaluation mode; every failure is a CheckpointError.

    path     a checkpoint file (torch.save's or .safetensors), or the folder that holds `checkpoint.pth`
    variant  the variant.yml; by default the one beside the checkpoint, and if there is none the tensors decide alone
    key      which of its state dicts, where it has several
    given    values of net_kwargs ("n_heads", "normalization", ...) that go before all others

    The tensors say what the architecture is; variant.yml, or the config in mmsegmentation's meta, adds what they cannot
    (heads, window, normalization) and has to agree with them.
     `model.info` lists the parameters left aside and the values assumed.
    """
    file = Path(path)
    file = file / "checkpoint.pth" if file.is_dir() else file
    raw, notes = read_file(file), list[str]()
    state, source = published_names(_tensors(raw, file, key, notes))
    if variant is None and (file.parent / "variant.yml").is_file():
        variant = file.parent / "variant.yml"
    ignored = tuple(name for name in state if UNUSED.fullmatch(name))
    state = {name: value for name, value in state.items() if name not in ignored}
    add_zero_biases(state, notes)
    known = mmseg.stated(raw, Variant.read(variant), file, notes).given(given)
    config = _config_from(state, source, known, file, notes)
    with torch.device("meta"):
        model = Segmenter(config)
    check_state(state, model, file)
    model.load_state_dict({k: v.to(torch.float32, copy=True).contiguous() for k, v in state.items()}, assign=True)
    model.info = LoadInfo(source, ignored, tuple(notes), _stated_classes(raw, config.n_cls))
    return model.eval()


def _tensors(raw: object, file: Path, key: str | None, notes: list[str]) -> State:
    """The state dict of {"model": ...} (Segmenter), {"state_dict": ...} (mmsegmentation) or of the file itself."""
    state = state_of(raw, key, notes)
    if isinstance(state, str) or not any(name.startswith(("encoder.", "backbone.")) for name in state):
        raise CheckpointError(
            f"{file}: holds {state if isinstance(state, str) else few(list(state))}, expected "
            '{"model": {encoder.*, decoder.*}} or mmsegmentation\'s {"state_dict": {backbone.*, decode_head.*}}; '
            "give the checkpoint.pth of a Segmenter"
        )
    return require_floats(state, file)


def add_zero_biases(state: State, notes: list[str]) -> None:
    """Biases that encoder or decoder was built without are zero, where every layer of the kind lacks it; in place."""
    for side in ("encoder", "decoder"):
        for kind in ("patch_embed.proj", "attn.qkv", "attn.proj"):
            weights = [name for name in state if name.startswith(side) and name.endswith(f".{kind}.weight")]
            biases = [name.removesuffix("weight") + "bias" for name in weights]
            if weights and not any(name in state for name in biases):
                notes.append(f"{side} {kind}.bias = 0: no layer has one")
                state |= {bias: torch.zeros(len(state[name])) for name, bias in zip(weights, biases, strict=True)}


def _stated_classes(raw: object, n_cls: int) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """Classes of mmsegmentation's meta: CLASSES and PALETTE (0.x) or dataset_meta (1.x); empty where it has none."""
    meta = raw.get("meta") if isinstance(raw, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    meta |= meta["dataset_meta"] if isinstance(meta.get("dataset_meta"), dict) else {}
    names, colours = (meta.get(key, meta.get(key.upper())) for key in ("classes", "palette"))
    try:
        names = [" ".join(name.split()) for name in names]
        found = [(int(r), int(g), int(b)) for r, g, b in colours]
    except (TypeError, ValueError, AttributeError):
        return ()
    usable = len(set(names)) == len(names) == len(found) == n_cls and all(0 <= v <= 255 for c in found for v in c)
    return tuple(zip(names, found, strict=True)) if usable else ()


def check_state(state: State, model: Segmenter, file: Path) -> None:
    """Names, shapes and values of `state` against a model on the meta device."""
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if missing := [name for name in expected if name not in state]:
        raise CheckpointError(f"{file}: missing parameters {few(missing)}; save the whole model's state_dict")
    if extra := [name for name in state if name not in expected]:
        raise CheckpointError(
            f"{file}: unexpected parameters {few(extra)}, expected only those of a "
            f"{model.config.decoder} Segmenter; remove them if they are not part of the model"
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            found = list(state[name].shape)
            raise CheckpointError(f"{file}: {name} is {found}, expected {list(shape)}; save the model again")
    if broken := [name for name in expected if not state[name].isfinite().all()]:
        raise CheckpointError(f"{file}: NaN or infinity in {few(broken)}; expected finite values: training diverged")


def _config_from(
    state: State, source: Literal["segmenter", "mmseg"], variant: Variant, file: Path, notes: list[str]
) -> SegmenterConfig:
    """The configuration that the tensors show, confirmed and completed by what is stated; notes say what is assumed."""
    encoder = encoder_fields(state, variant, file, notes)
    image = encoder["image_size"]
    window = variant.pair(variant.inference, "window_size") or image
    mmseg: dict[str, Any] = {"norm_eps": 1e-6, "pos_mode": "bicubic"} if source == "mmseg" else {}
    stated = {key: variant.net[key] for key in ("norm_eps", "pos_mode") if key in variant.net}
    try:
        config = SegmenterConfig(
            window=window,
            stride=variant.pair(variant.inference, "window_stride") or window,
            normalization=variant.net.get("normalization", "deit" if encoder["distilled"] else "vit"),
            dec_norm_eps=float(variant.decoder.get("norm_eps", 1e-5)),
            im_size=variant.im_size(image),
            **encoder,
            **_decoder_fields(state, variant, file, notes, source),
            **(mmseg | stated),
        )
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}; correct {variant.name}") from None
    for key, value, option in (
        ("window_size", sides(config.window), "--window"),
        ("window_stride", sides(config.stride), "--stride"),
        ("normalization", config.normalization, "--normalization"),
    ):
        if key not in variant.inference | variant.net:
            notes.append(f"{key} = {value}: not stated ({option})")
    return config


def encoder_fields(state: State, variant: Variant, file: Path, notes: list[str]) -> dict[str, Any]:
    proj = "encoder.patch_embed.proj.weight"
    width, _, patch, _ = _shape(state, proj, 4, file)
    _, tokens, _ = _shape(state, "encoder.pos_embed", 3, file)
    hidden, _ = _shape(state, "encoder.blocks.0.mlp.fc1.weight", 2, file)
    layers = _count_blocks(state, "encoder")
    distilled = "encoder.dist_token" in state
    variant.agree("d_model", width, proj)
    variant.agree("patch_size", patch, proj)
    variant.agree("n_layers", layers, "the number of encoder.blocks")
    variant.agree("distilled", distilled, "the presence of encoder.dist_token")
    return {
        "image_size": _image_size(tokens - 1 - distilled, patch, variant, file, notes),
        "patch": patch,
        "d_model": width,
        "n_layers": layers,
        "n_heads": variant.heads(variant.net, "encoder", width, notes),
        "mlp_dim": hidden,
        "distilled": distilled,
    }


def _image_size(patches: int, patch: int, variant: Variant, file: Path, notes: list[str]) -> Pair:
    """Pixels that the position embedding covers: stated, otherwise a square."""
    if size := variant.pair(variant.net, "image_size"):
        rows, cols = size[0] // patch, size[1] // patch
        if rows * cols != patches:
            raise CheckpointError(
                f"{variant.name}: image_size is {size}, {rows} x {cols} patches of {patch}, but encoder.pos_embed in "
                f"the checkpoint has {patches} patches; use the variant.yml that came with this checkpoint"
            )
        return size
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise CheckpointError(
            f"{file}: encoder.pos_embed has {patches} patches, not a square, expected image_size in "
            f"{variant.name}; write net_kwargs: image_size: [rows, columns] to variant.yml"
        )
    notes.append(f"image_size = {side * patch} x {side * patch}: a square position embedding")
    return side * patch, side * patch


def _decoder_fields(
    state: State, variant: Variant, file: Path, notes: list[str], source: Literal["segmenter", "mmseg"]
) -> dict[str, Any]:
    stated = variant.decoder.get("name")
    if "decoder.cls_emb" not in state and "decoder.head.weight" not in state:
        found = few([name for name in state if name.startswith(("decoder.", "decode_head."))])
        raise CheckpointError(
            f"{file}: decoder parameters are {found}, expected decoder.cls_emb (mask transformer) or "
            "decoder.head (linear); give a checkpoint with one of these decoders"
        )
    kind: Decoder = "mask_transformer" if "decoder.cls_emb" in state else "linear"
    if stated is not None and ("linear" if "linear" in str(stated) else stated) != kind:
        variant.agree("name", kind, "the decoder", variant.decoder)
    if kind == "linear":
        n_cls, _ = _shape(state, "decoder.head.weight", 2, file)
        variant.agree("n_cls", n_cls, "decoder.head.weight")
        return {"decoder": kind, "n_cls": n_cls}
    _, n_cls, width = _shape(state, "decoder.cls_emb", 3, file)
    layers = _count_blocks(state, "decoder")
    heads = variant.heads(variant.decoder, "decoder", width, notes)
    if "n_heads" not in variant.decoder and (source == "mmseg" or width % HEAD_DIM):  # elsewhere it is the rule
        notes.append(f"decoder n_heads = {heads}: not stated (net_kwargs: decoder: n_heads in a variant.yml)")
    variant.agree("n_cls", n_cls, "decoder.cls_emb")
    variant.agree("n_layers", layers, "the number of decoder.blocks", variant.decoder)
    return {
        "decoder": kind,
        "n_cls": n_cls,
        "d_decoder": width,
        "dec_layers": layers,
        "dec_heads": heads,
        "dec_mlp_dim": _shape(state, "decoder.blocks.0.mlp.fc1.weight", 2, file)[0] if layers else 0,
    }


def _shape(state: State, name: str, rank: int, file: Path) -> tuple[int, ...]:
    """The shape of a parameter that the configuration is read from."""
    if name not in state:
        raise CheckpointError(f"{file}: missing parameters {name}; save the whole model's state_dict")
    shape = tuple(state[name].shape)
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"{file}: {name} is {list(shape)}, expected {rank} dimensions; save the model again")
    return shape


def _count_blocks(state: State, side: str) -> int:
    """Distinct block numbers. A gap among them shows up later as a missing block."""
    return len({m[1] for name in state if (m := re.match(rf"{side}\.blocks\.(\d+)\.", name))})


def save_checkpoint(model: Segmenter, folder: str | os.PathLike[str], dataset: str = "") -> None:
    """Write `checkpoint.pth` and `variant.yml` as published; each file appears whole or not at all.

    dataset  its name, from which conversion knows the classes' names; "" for none
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    variant = variant_of(model.config)
    if dataset:
        variant["dataset_kwargs"] = {"dataset": dataset} | variant["dataset_kwargs"]
    text = yaml.safe_dump(variant, sort_keys=False)
    buffer = io.BytesIO()
    torch.save({"model": state, "n_cls": model.config.n_cls}, buffer)
    write_atomically(target / "checkpoint.pth", buffer.getvalue())
    write_atomically(target / "variant.yml", text.encode())
