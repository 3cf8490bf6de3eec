"""Labels beside those of the code that checkpoints are published with, run as it is.

    git clone https://github.com/rstrudel/segmenter && pip install einops
    python tools/measure/published.py segmenter CHECKPOINT --clone segmenter --root CamVid [-w camvid-tiny] [--step 5]
    pip install --no-deps mmsegmentation==1.2.2 mmcv-lite==2.1.0 mmengine addict yapf prettytable wcwidth ftfy regex
    python tools/measure/published.py mmseg IMAGE

`segmenter` runs the repository's model and its `inference()` on CamVid val, beside the float model and the weights of
-w. `mmseg` builds each Segmenter that mmsegmentation ships a config for, one block deep and with random weights, saves
it as its runner does, loads that and compares the labels of the image, cut to the crop and 100 columns more. What only
training or other networks need of timm and mmcv has stand-ins.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from intseg import api
from intseg.batch import datasets, metrics
from intseg.images import decode as pictures
from intseg.images.labels import truth
from intseg.reports.table import table
from intseg.tools.convert import model_info, recipe_for
from intseg.tools.evaluate import Labels, batch_of, float_labels
from intseg.tools.twin import classes
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.segmenter import Segmenter


class StandIn(types.ModuleType):
    """A module that has every name: an empty class, or what it is given."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Identity,), {})


def stand_in(*names: str, **values: object) -> None:
    for name in names:
        sys.modules[name] = StandIn(name)
        vars(sys.modules[name]).update(values)


def ours(model: Segmenter) -> Callable[[NDArray[np.uint8]], Labels]:
    """The float model through the windows that `convert` gives it."""
    named = classes.numbered(model.config.n_cls)
    info = model_info(model.config, recipe_for("intseg"), "published", named)
    return lambda rgb: float_labels(model, batch_of(rgb, info), (rgb.shape[0], rgb.shape[1]), info, "bilinear")


def segmenter(args: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """mIoU of each, and the pixels that are as published: of all images, of the worst."""
    model, data = load_checkpoint(args.checkpoint), datasets.open_dataset("camvid", args.root, "val")
    engine = api.load(args.weights)
    ways = {"published": of_clone(args.clone, args.checkpoint, model), "float": ours(model)}
    ways["engine"] = lambda rgb: api.run(rgb, engine).labels
    count = model.config.n_cls
    total, equal = {way: np.zeros((count, count), np.int64) for way in ways}, {way: list[float]() for way in ways}
    for pair in data.pairs[:: args.step]:
        picture = pictures.decode(pair.image, engine.info.pad)
        wanted, _ = truth(pair.labels, picture, count, data.labelling, str(pair.image))
        found = {way: run(picture.rgb) for way, run in ways.items()}
        for way, labels in found.items():
            total[way] += metrics.confusion(wanted, labels, count, ignore=-1)
            equal[way].append(100 * float((labels == found["published"]).mean()))
    yield "labels", "mIoU %", "as published %", "worst image %"
    for way in ways:
        yield way, f"{metrics.metrics(total[way]).miou:.2f}", f"{np.mean(equal[way]):.2f}", f"{min(equal[way]):.2f}"


def of_clone(clone: Path, checkpoint: Path, model: Segmenter) -> Callable[[NDArray[np.uint8]], Labels]:
    """rstrudel/segmenter's own network and inference()."""
    stand_in("timm", "timm.models")
    stand_in("timm.models.layers", "timm.models.vision_transformer", trunc_normal_=lambda *_, **__: None)
    sys.path.insert(0, str(clone))
    vit, decoder, whole, utils = (
        importlib.import_module(f"segm.model.{n}") for n in ("vit", "decoder", "segmenter", "utils")
    )
    c = model.config
    size = {"d_model": c.d_model, "n_heads": c.n_heads, "d_ff": c.mlp_dim, "n_layers": c.n_layers, "n_cls": 1000}
    encoder = vit.VisionTransformer(c.image_size, c.patch, distilled=c.distilled, **size)
    if c.decoder == "linear":
        head = decoder.DecoderLinear(c.n_cls, c.patch, c.d_model)
    else:
        heads = {"n_heads": c.dec_heads, "d_model": c.d_decoder, "d_ff": c.dec_mlp_dim}
        head = decoder.MaskTransformer(c.n_cls, c.patch, c.d_model, c.dec_layers, drop_path_rate=0, dropout=0, **heads)
    network = whole.Segmenter(encoder, head, n_cls=c.n_cls)
    network.load_state_dict(torch.load(checkpoint / "checkpoint.pth", weights_only=True)["model"], strict=False)
    network.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (c.mean, c.std))

    def run(rgb: NDArray[np.uint8]) -> Labels:
        image = ((torch.from_numpy(rgb.copy()).permute(2, 0, 1).float() / 255 - mean) / std)[None]
        options = {"window_size": c.window[0], "window_stride": c.stride[0], "batch_size": 2}
        found: Labels = utils.inference(network, [image], [{"flip": False}], rgb.shape[:2], **options).argmax(0).numpy()
        return found

    return run


def mmseg(args: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The pixels that are as published, by config."""
    stand_in("mmcv.ops", "mmcv._ext", "mmcv.ops.point_sample")
    package = importlib.import_module("mmseg.models").__path__[0]
    importlib.import_module("mmengine.registry").init_default_scope("mmseg")
    picture = Image.open(args.image).convert("RGB")
    yield "config", "classes seen", "as published %", "assumed"
    for file in sorted(Path(package, "..", ".mim", "configs", "segmenter").glob("*.py")):
        config = importlib.import_module("mmengine.config").Config.fromfile(file)
        config.model.pretrained, config.model.backbone.num_layers = None, 1
        network = drawn(importlib.import_module("mmseg.registry").MODELS.build(config.model).eval())
        side = config.model.test_cfg.crop_size[0]
        rgb = np.array(picture.resize((side + 100, side)))
        with tempfile.TemporaryDirectory() as folder:
            torch.save(checkpoint_of(network, config), Path(folder) / "iter.pth")
            model = load_checkpoint(Path(folder) / "iter.pth")
        wanted, found = of_mmseg(network, rgb), ours(model)(rgb)
        equal = f"{100 * float((wanted == found).mean()):.3f}"
        yield file.stem, str(len(np.unique(wanted))), equal, "; ".join(model.info.notes)


def drawn(network: Any) -> Any:
    """Random weights under which several classes are seen."""
    generator = torch.Generator().manual_seed(5)
    for name, value in network.named_parameters():
        scale = 0.1 if value.ndim == 1 else 0.5 if value.ndim == 3 else 1.5 / value[0].numel() ** 0.5
        one = value.ndim == 1 and name.endswith("weight")  # of a LayerNorm
        value.data = torch.randn(value.shape, generator=generator) * scale + one
    return network


def checkpoint_of(network: Any, config: Any) -> dict[str, Any]:
    """What mmengine's runner saves: its message hub is of a class that only mmengine knows."""
    hub = importlib.import_module("mmengine.logging").MessageHub.get_instance("published")
    hub.update_scalar("train/loss", 1.0)
    meta = {"cfg": config.pretty_text, "seed": 1, "epoch": 0}
    return {"meta": meta, "state_dict": network.state_dict(), "message_hub": hub.state_dict()}


def of_mmseg(network: Any, rgb: NDArray[np.uint8]) -> Labels:
    """Labels of mmsegmentation's own preprocessing, windows and network."""
    sample = importlib.import_module("mmseg.structures").SegDataSample()
    size = dict.fromkeys(("ori_shape", "img_shape", "pad_shape"), rgb.shape[:2])
    sample.set_metainfo({**size, "scale_factor": 1.0, "flip": False})
    inputs = [torch.from_numpy(rgb[..., ::-1].copy()).permute(2, 0, 1)]
    with torch.no_grad():
        data = network.data_preprocessor({"inputs": inputs, "data_samples": [sample]}, False)
        (found,) = network.predict(data["inputs"], data["data_samples"])
    labels: Labels = found.pred_sem_seg.data[0].numpy()
    return labels


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = argparse.ArgumentParser(prog="published.py", description=(__doc__ or "").splitlines()[0])
    kinds = p.add_subparsers(required=True, metavar="KIND")
    one = kinds.add_parser("segmenter", help="rstrudel/segmenter on CamVid val")
    one.add_argument("checkpoint", type=Path, help="folder of checkpoint.pth and variant.yml")
    one.add_argument("--clone", type=Path, required=True, help="of github.com/rstrudel/segmenter")
    one.add_argument("--root", type=Path, required=True, help="CamVid")
    one.add_argument("-w", "--weights", default="camvid-tiny", help="of the engine (camvid-tiny)")
    one.add_argument("--step", type=int, default=5, metavar="K", help="every K-th val image (5)")
    one.set_defaults(rows=segmenter)
    other = kinds.add_parser("mmseg", help="mmsegmentation's own configs, random weights")
    other.add_argument("image", type=Path)
    other.set_defaults(rows=mmseg)
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    print("\n".join(table(list(args.rows(args)), gap=2)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
