"""A weights file against the float checkpoint it came from: the two real graphs meet, damaged weights are seen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import SMALL as CONFIG
from PIL import Image

from intseg import api, store
from intseg.graph import Graph
from intseg.tools import convert
from intseg.tools.measure import quant_report
from intseg.tools.twin import calibrate as cal
from intseg.tools.twin.checkpoint import save_checkpoint
from intseg.tools.twin.export import export
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.recipe import RECIPES
from intseg.tools.twin.segmenter import Segmenter, random_segmenter

torch.set_num_threads(1)


def shot(folder: Path) -> Path:
    coarse = np.random.default_rng(1).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((60, 40), Image.Resampling.BILINEAR).save(folder / "shot.png")
    return folder / "shot.png"


def exported(recipe: str, file: Path) -> tuple[Segmenter, Graph]:
    model = random_segmenter(CONFIG, 3)
    named = {f"class {i}": (i, i, i) for i in range(CONFIG.n_cls)}
    info = convert.model_info(CONFIG, RECIPES[recipe], "random", named)
    twin = FakeQuantSegmenter(model, info.window, RECIPES[recipe])
    cal.calibrate(twin, model, [convert.windows(file, info)])
    return model, export(twin, info)


def as_model(graph: Graph) -> api.Model:
    return api.Model(graph, "0" * 64, Path("w.safetensors"))


@pytest.mark.parametrize("recipe", ["paper", "intseg"])
def test_the_real_graph_is_the_float_model_but_for_its_weights(recipe: str, tmp_path: Path) -> None:
    """The strongest test of intseg.exam.real: PyTorch's float model knows nothing of grids, tables and multipliers."""
    file = shot(tmp_path)
    model, graph = exported(recipe, file)
    found = quant_report.compare(model, as_model(graph), [file])
    names = {node.name for node in found.nodes}
    assert {"encoder.blocks.1.attn.scores", "encoder.blocks.0.mlp.act", "encoder.norm", "decoder.masks"} <= names
    for node in found.nodes:
        assert node.decibels("real") > 30, node.name
        assert node.decibels("integer") < node.decibels("real") + 3, node.name
        if node.weight_db is not None:
            assert 35 < node.weight_db < 60, node.name
    assert set(found.constants) == {"encoder.cls_token", "encoder.pos_embed", "decoder.cls_emb"}
    assert min(found.constants.values()) > 70  # INT16
    assert found.same["real"] >= found.same["integer"] > 0.8
    assert found.same["real"] > 0.95


def test_damaged_weights_are_seen(tmp_path: Path) -> None:
    """Three bits of one layer's weights cut off: its weights fall to the end, no other node's do."""
    file = shot(tmp_path)
    model, graph = exported("intseg", file)
    sound = quant_report.weight_sqnr(graph, model)
    graph.tensors["encoder.blocks.1.mlp.fc1.weight"][:] &= ~7  # type: ignore[index]
    broken = quant_report.weight_sqnr(graph, model)
    assert min(sound.values()) > 35
    assert broken["encoder.blocks.1.mlp.fc1"] < 28
    assert {name for name in sound if sound[name] != broken[name]} == {"encoder.blocks.1.mlp.fc1"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shot(tmp_path)
    model, graph = exported("paper", file)
    save_checkpoint(model, tmp_path / "checkpoint.pth")
    store.save(graph, tmp_path / "w.safetensors")
    arguments = [str(tmp_path / "checkpoint.pth"), str(tmp_path / "w.safetensors"), str(file)]
    assert quant_report.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("encoder.pos_embed" in line for line in lines)
    assert quant_report.main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(found) == {"nodes", "constants", "same"}
    order = [node["db"] for node in found["nodes"]]
    assert order == sorted(order)


def test_another_models_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shot(tmp_path)
    save_checkpoint(random_segmenter(CONFIG, 3), tmp_path / "checkpoint.pth")
    assert quant_report.main([str(tmp_path / "checkpoint.pth"), "camvid-tiny", str(file)]) == 3
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "5 classes" in error
    assert quant_report.main([str(tmp_path / "none.pth"), "camvid-tiny", str(file)]) == 3
    assert "none.pth" in capsys.readouterr().err
