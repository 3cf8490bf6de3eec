"""A model folder as model hubs expect it: config.json, model.safetensors, preprocessor_config.json, README.md."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intseg import api, files, models, store
from intseg._version import __version__
from intseg.errors import InputError, MismatchError
from intseg.reports import doctor
from intseg.reports import inspect as inspect_model
from intseg.reports.table import markdown

WEAK = 20.0
"""IoU in percent below which a class is named as one that the model hardly finds."""

FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md")


@dataclass(frozen=True)
class Facts:
    """What the weights file does not say.

    metrics  path of what `intseg eval --json` printed
    data     name of the data set behind it
    license  of the weights
    """

    metrics: str | None = None
    data: str | None = None
    license: str | None = None


def write(
    model: api.Model, folder: str | os.PathLike[str], facts: Facts | None = None, force: bool = False
) -> list[Path]:
    """Write the folder, whole or not at all; its files.

    force  replace the files of an existing folder, one by one; other files in it stay
    Raises InputError for a folder that holds something or cannot be written, and for metrics of another model.
    """
    target = Path(folder)
    occupied = _occupied(target)
    if occupied and not force:
        raise InputError(f"{target}: exists and is not empty; choose another folder, or --force replaces its files")
    contents = make(model, facts or Facts())
    if occupied:
        for name, data in contents.items():
            store.write_atomically(target / name, data)
    else:
        with files.new_folder(target) as made:
            for name, data in contents.items():
                with files.create(made / name) as file:
                    file.write(data)
    return [target / name for name in contents]


def _occupied(target: Path) -> bool:
    try:
        if not target.is_dir():
            if os.path.lexists(target):
                raise InputError(f"{target}: is a file, expected a folder; choose another with -o")
            return False
        return any(target.iterdir())
    except OSError as error:
        raise InputError(f"{target}: cannot read: {error.strerror}; choose another folder with -o") from None


def make(model: api.Model, facts: Facts) -> dict[str, bytes]:
    """Name -> bytes of every file. Without metrics, a bundled model has those that it was measured with."""
    measured = model.path.with_suffix(".json")
    if not facts.metrics and model.path.parent == models.path(models.DEFAULT).parent and measured.exists():
        facts = replace(facts, metrics=str(measured), data=models.MEASURED)
    metrics = _read_metrics(model, facts.metrics) if facts.metrics else None
    texts = (
        _json(config(model)),
        store.read(model.path),
        _json(preprocessor(model)),
        readme(model, facts, metrics).encode("utf-8", "replace"),
    )
    return dict(zip(FILES, texts, strict=True))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def config(model: api.Model) -> dict[str, Any]:
    """config.json: classes by number and by name, and the geometry of windows."""
    info = model.info
    return {
        "model_type": "intseg",
        "architectures": ["ViT" if info.classifies else "Segmenter"],
        "task": info.task,
        "library_name": "intseg",
        "name": info.name,
        "recipe": info.recipe,
        "num_labels": len(info.classes),
        "id2label": {str(i): name for i, name in enumerate(info.classes)},
        "label2id": {name: i for i, name in enumerate(info.classes)},
        "palette": [list(colour) for colour in info.palette],
        "image_size": list(info.window),
        "stride": list(info.stride),
        "patch_size": info.patch,
        "upsample": info.upsample,
        "format": store.FORMAT,
        "sha256": model.sha256,
        "intseg_version": __version__,
    }


def preprocessor(model: api.Model) -> dict[str, Any]:
    """preprocessor_config.json: pixels go in as they are; normalization is a table inside the model."""
    info = model.info
    return {
        "image_processor_type": "intseg",
        "do_resize": info.working_size is not None,
        "do_center_crop": info.classifies,
        "do_rescale": False,
        "do_normalize": False,
        "do_convert_rgb": True,
        "do_pad": True,
        "pad_value": list(info.pad),
        "pad_to_multiple_of": info.patch,
        "window": list(info.window),
        "stride": list(info.stride),
        "input_dtype": "uint8",
        "input_layout": "HWC",
    }


def _read_metrics(model: api.Model, path: str) -> dict[str, Any]:
    text = files.read_text(path, "metrics", "give a file of intseg eval --json", pipes=True)
    try:
        found = files.parse_json(text)
    except ValueError:
        raise InputError(f"{path}: is not JSON, expected what intseg eval --json printed") from None
    measured = found.get("model") if isinstance(found, dict) else None
    sha256 = measured.get("sha256") if isinstance(measured, dict) else None
    wanted = [*(key for _, key in _metric_names(model)), "images"]
    numbers = [found.get(key) for key in wanted] if sha256 else []
    if not numbers or any(type(value) not in (int, float) for value in numbers):
        raise InputError(f"{path}: lacks {', '.join(wanted)} or model; give what intseg eval --json printed")
    if sha256 != model.sha256:
        raise InputError(
            f"{path}: metrics of the model {sha256!r:.14}, expected {model.sha256[:12]}; evaluate this one"
        )
    return dict(found)


def golden_digest(model: api.Model) -> str:
    """`doctor.digest` of the model on `doctor.pattern`; all backends must agree. Raises MismatchError."""
    found = {name: doctor.digest(api.run(doctor.pattern(), model, name)) for name in doctor.installed_backends()}
    if len(set(found.values())) > 1:
        raise MismatchError(f"{model.path}: backends differ ({', '.join(found)}); run intseg doctor")
    return next(iter(found.values()))


# --------------------------------------------------------------------------------------------------------- README


def readme(model: api.Model, facts: Facts, metrics: dict[str, Any] | None = None) -> str:
    """The card: front matter that hubs read, then what people want to know."""
    info, found = model.info, inspect_model.totals(model.graph)
    size = model.path.stat().st_size
    title, recipe = (_markdown(text) for text in (info.name, info.recipe))
    head = [
        f"# {title}",
        "",
        f"An integer-only {info.task} model for intseg. Recipe {recipe}, no floating point inside.",
        "",
    ]
    rows: list[tuple[str, ...]] = [
        ("", ""),
        ("classes", str(len(info.classes))),
        (
            "window",
            f"{info.window[0]} x {info.window[1]}, stride {info.stride[0]} x {info.stride[1]}, patch {info.patch}",
        ),
        *([] if info.classifies else [("class map", info.upsample)]),
        ("parameters", f"{found.parameters:,}"),
        ("work", f"{found.macs / 1e9:.2f} GMAC, {found.bitops / 1e9:.1f} GBitOp per window"),
        ("file", f"{size / 1e6:.2f} MB, sha256 `{model.sha256}`"),
    ]
    if info.source:
        rows.append(("source", _markdown(info.source)))
    bits: list[tuple[str, ...]] = [("numbers", "tensors", "elements", "bytes")]
    bits += [(dtype, *(f"{entry[key]:,}" for key in bits[0][1:])) for dtype, entry in found.precision.items()]
    parts = [*_front_matter(model, facts, metrics), *head, *markdown(rows), "", "## Bits", "", *markdown(bits), ""]
    parts += _accuracy(model, facts, metrics) + _use(model)
    classes: list[tuple[str, ...]] = [("index", "class", "colour")]
    classes += [
        (str(i), _markdown(name), "#{:02x}{:02x}{:02x}".format(*colour))
        for i, (name, colour) in enumerate(zip(info.classes, info.palette, strict=True))
    ]
    found_iou = _iou(model, metrics)
    if found_iou:
        shown = ["IoU %", *("not in the data" if value is None else f"{value:.2f}" for value in found_iou)]
        classes = [(*row, cell) for row, cell in zip(classes, shown, strict=True)]
    return "\n".join([*parts, "## Classes", "", *markdown(classes), ""])


def _iou(model: api.Model, metrics: dict[str, Any] | None) -> list[float | None]:
    """IoU of every class in percent, None for a class without a pixel; empty where it was not measured."""
    found = (metrics or {}).get("IoU")
    if not isinstance(found, list) or len(found) != len(model.info.classes):
        return []
    return [float(value) if type(value) in (int, float) else None for value in found]


def _front_matter(model: api.Model, facts: Facts, metrics: dict[str, Any] | None) -> list[str]:
    """YAML, every value as JSON: whatever a name holds, it stays one value."""
    task = f"image-{model.info.task}"
    about = ["image-classification"] if model.info.classifies else ["image-segmentation", "semantic-segmentation"]
    lines = ["---", "library_name: intseg", f"pipeline_tag: {task}"]
    if facts.license:
        lines.append(f"license: {json.dumps(facts.license)}")
    lines.append(f"tags: {json.dumps([*about, 'quantized', 'int8', 'integer-only'])}")
    if metrics is not None:
        data = facts.data or "unnamed"
        values = [{"type": name, "value": round(metrics[key], 2)} for name, key in _metric_names(model)]
        result = {"task": {"type": task}, "dataset": {"name": data, "type": data}, "metrics": values}
        lines.append(f"model-index: {json.dumps([{'name': model.info.name, 'results': [result]}])}")
    return [*lines, "---", ""]


_METRICS = (("mean_iou", "mIoU"), ("mean_accuracy", "mAcc"), ("overall_accuracy", "aAcc"))
_CLASS_METRICS = (("accuracy", "top1"), ("top_5_accuracy", "top5"))


def _metric_names(model: api.Model) -> tuple[tuple[str, str], ...]:
    """What hubs call a metric, and its key in what `intseg eval --json` prints."""
    return _CLASS_METRICS if model.info.classifies else _METRICS


def _accuracy(model: api.Model, facts: Facts, metrics: dict[str, Any] | None) -> list[str]:
    if metrics is None:
        return [
            "## Accuracy",
            "",
            "Not measured: `intseg eval` measures it, `intseg card --metrics` writes it here.",
            "",
        ]
    where = f" of {_markdown(facts.data)}" if facts.data else ""
    names = _metric_names(model)
    row = [tuple(f"{metrics[key]:.2f}" for _, key in names)]
    plural = "s" * (metrics["images"] != 1)
    head = f"{metrics['images']} image{plural}{where}, in percent, by `intseg eval`:"
    table = markdown([tuple(key for _, key in names), *row])
    weak = [
        f"{_markdown(name)} {value:.0f}"
        for name, value in zip(model.info.classes, _iou(model, metrics), strict=False)
        if value is not None and value < WEAK
    ]
    said = [f"It hardly finds (IoU %): {', '.join(weak)}. IoU per class is below.", ""] if weak else []
    return ["## Accuracy", "", head, "", *table, "", *said]


def _use(model: api.Model) -> list[str]:
    return [
        "## Use",
        "",
        "```sh",
        "intseg infer image.png -w model.safetensors",
        "```",
        "",
        "## Check",
        "",
        "Every machine, backend and version must give this digest (scores and labels of "
        "`intseg.reports.doctor.pattern()`):",
        "",
        "```python",
        "import intseg",
        "from intseg.reports import doctor",
        "",
        'result = intseg.run(doctor.pattern(), "model.safetensors")',
        f'assert doctor.digest(result) == "{golden_digest(model)}"',
        "```",
        "",
    ]


def _markdown(text: str) -> str:
    """Text that stays text: one line, no markup, no HTML, no table cell."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"([\\`*_{}\[\]<>()#+!|&~])", r"\\\1", line)
