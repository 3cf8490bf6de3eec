"""A float ONNX file, as torch.onnx.export writes it, back into a Segmenter or a classifier: matched by its structure.

Names do not count, only the operators that compute, in their order: what moves values or works on shapes is passed
over. Whether all of it is connected as in a Segmenter is then tried: both give the same scores of an image, or the file
is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intseg import files
from intseg.tools.twin.classifier import CROP, Classifier
from intseg.tools.twin.config import CheckpointError, SegmenterConfig
from intseg.tools.twin.names import State
from intseg.tools.twin.segmenter import LoadInfo, Segmenter

_PASSED = ("Constant", "Identity", "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Expand", "Gather")
_PASSED += ("Flatten", "Pad", "Cast", "Dropout")
_TOLERANCE = 1e-3
"""Of the largest score: two runtimes add floats in different orders."""


def load_onnx(path: Path) -> Segmenter | Classifier:
    """The model of an .onnx file, in evaluation mode. Raises CheckpointError with the first node that does not fit."""
    try:
        import onnx
    except ImportError:
        raise CheckpointError(f"{path}: ONNX files need the package onnx: pip install 'intseg[onnx]'") from None
    with files.opened(path, "", "give a float ONNX file") as stream:
        try:
            made = onnx.load_model_from_string(stream.read())
            onnx.load_external_data_for_model(made, str(path.parent))
            made = onnx.shape_inference.infer_shapes(made)
        except Exception as error:  # protobuf and onnx each have their own
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise CheckpointError(f"{path}: not a whole ONNX model ({reason}); export the model again") from None
    reader = _Reader(path, made)
    state, fields = reader.whole()
    try:
        config = SegmenterConfig(**fields)
        with torch.device("meta"):
            model = Classifier(config) if reader.classifies else Segmenter(config)
        model.load_state_dict(state, strict=True, assign=True)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())[:160]}; export a whole Segmenter") from None
    _require_same(path, made, reader.image, model.eval())
    if reader.classifies:
        notes = (f"crop_pct = {CROP}, normalization = {config.normalization}: an ONNX file states neither",)
        model.info = LoadInfo("timm", (), notes)
    return model


def _require_same(path: Path, made: Any, image: tuple[str, list[int]], model: Segmenter | Classifier) -> None:
    pixels = _pixels(image)
    (given, *_), x = _run(path, made, None, pixels), torch.from_numpy(pixels[image[0]])
    with torch.no_grad():
        wanted = [model(x).numpy(), model.forward_scores(x).numpy()]
    same = next((scores for scores in wanted if scores.shape == given.shape), None)
    if same is None:
        found = list(given.shape)
        raise CheckpointError(f"{path}: gives {found}, expected scores {list(wanted[0].shape)}; export a Segmenter")
    far = float(np.abs(given - same).max() / np.abs(same).max())
    if not far <= _TOLERANCE:
        raise CheckpointError(
            f"{path}: its scores differ by {far:.1%} from those of a Segmenter with its parameters, expected none: "
            "the operators are those of one but are connected otherwise; export rstrudel/segmenter's own model"
        )


def _pixels(image: tuple[str, list[int]]) -> dict[str, NDArray[np.float32]]:
    """Noise under the name of the image."""
    name, shape = image
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()}


def _run(path: Path, made: Any, names: list[str] | None, given: dict[str, NDArray[np.float32]]) -> list[Any]:
    """Results by name, or the outputs. Raises CheckpointError."""
    from onnx.reference import ReferenceEvaluator

    try:
        found: list[Any] = ReferenceEvaluator(made).run(names, given)
    except Exception as error:  # whatever the operators of a file raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{path}: cannot be run ({reason}); export the model again") from None
    return found


class _Reader:
    """The computing nodes of a graph, taken one after another."""

    def __init__(self, path: Path, made: Any) -> None:
        from onnx import TensorProto, numpy_helper

        self.path, self.at = path, 0
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
        self.producers = {name: node for node in made.graph.node for name in node.output}
        infos = (*made.graph.value_info, *made.graph.output)
        kinds = {info.name: info.type.tensor_type.elem_type for info in infos}
        for node in made.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.nodes = [
            node
            for node in made.graph.node
            if node.op_type not in _PASSED and kinds.get(node.output[0]) == TensorProto.FLOAT
        ]
        (given, *more) = [info for info in made.graph.input if info.name not in self.constants]
        shape = [d.dim_value for d in given.type.tensor_type.shape.dim]
        if more or len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise CheckpointError(f"{path}: takes {shape}, expected [1, 3, H, W] of fixed size; export it with one")
        self.image = (given.name, [1, *shape[1:]])
        if fixed := self._fixed(made):
            self.constants |= zip(fixed, _run(path, made, fixed, _pixels(self.image)), strict=True)
            self.nodes = [node for node in self.nodes if node.output[0] not in fixed]
        self.classifies = len(made.graph.output[0].type.tensor_type.shape.dim) == 2
        self.state: State = {}
        self.heads: list[int] = []
        self.eps: list[float] = []

    def _fixed(self, made: Any) -> list[str]:
        """Results that compute but depend on no pixel, as the scale of a fused attention: the width of its heads."""
        moving = {self.image[0]}
        for node in made.graph.node:
            if node.op_type != "Shape" and (moving & {*node.input} or any(a.HasField("g") for a in node.attribute)):
                moving.update(node.output)
        return [node.output[0] for node in self.nodes if node.output[0] not in moving]

    # ------------------------------------------------------------------------------------------------------ the parts

    def peek(self, ahead: int = 0) -> str:
        """Operator of a coming node; "" after the last."""
        return self.nodes[self.at + ahead].op_type if self.at + ahead < len(self.nodes) else ""

    def take(self, *kinds: str) -> Any:
        """The next node, which is one of these operators."""
        if self.peek() not in kinds:
            found = f"{self.peek()} {self.nodes[self.at].name!r}" if self.peek() else "the end"
            raise CheckpointError(
                f"{self.path}: node {self.at + 1} of those that compute is {found}, expected {' or '.join(kinds)}: "
                "not the structure of a Segmenter; export the model as torch.onnx.export writes it"
            )
        self.at += 1
        return self.nodes[self.at - 1]

    def constant(self, name: str) -> NDArray[np.float32] | None:
        """A parameter, seen through the operators that pass it on."""
        if name in self.constants:
            return self.constants[name]
        node = self.producers.get(name)
        if node is None or node.op_type not in ("Identity", "Expand", "Cast"):
            return None
        return self.constant(node.input[0])

    def parameters(self, node: Any) -> list[NDArray[np.float32]]:
        """The constant operands of a node."""
        return [array for name in node.input if (array := self.constant(name)) is not None]

    def put(self, name: str, array: NDArray[np.float32]) -> None:
        """A parameter of the model, laid out as a checkpoint has it: sums of floats follow the layout."""
        self.state[name] = torch.from_numpy(np.array(array, np.float32, order="C"))

    def some(self, node: Any, count: int) -> list[NDArray[np.float32]]:
        """The constant operands of a node that has so many; the last, a bias, may lack where it is zero."""
        found = self.parameters(node)
        if count > 1 and len(found) == count - 1:
            turned = node.op_type == "Gemm" and not self._swapped(node)
            found.append(np.zeros(found[0].shape[1 if turned else 0], np.float32))
        if len(found) != count:
            about = f"{node.op_type} {node.name!r} has {len(found)} parameters, expected {count}"
            raise CheckpointError(f"{self.path}: {about}: not the structure of a Segmenter")
        return found

    def one(self, node: Any) -> NDArray[np.float32]:
        """The only constant operand of a node."""
        return self.some(node, 1)[0]

    def _swapped(self, node: Any) -> bool:
        return any(a.name == "transB" and a.i for a in node.attribute)

    def layer(self) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
        """Weight, bias and result of `MatMul` and `Add`, or of `Gemm`."""
        node = self.take("MatMul", "Gemm")
        if node.op_type == "Gemm":
            weight, bias = self.some(node, 2)
            return weight if self._swapped(node) else weight.T, bias, node.output[0]
        weight = self.one(node)
        bias = np.zeros(weight.shape[-1], np.float32)
        if self._has_bias(0):
            node = self.take("Add")
            bias = self.one(node)
        return weight.T, bias, node.output[0]

    def linear(self, name: str) -> None:
        """A linear layer."""
        weight, bias, _ = self.layer()
        self.put(f"{name}.weight", weight)
        self.put(f"{name}.bias", bias)

    def norm(self, name: str) -> None:
        """`LayerNormalization` with both parameters."""
        node = self.take("LayerNormalization")
        weight, bias = self.some(node, 2)
        self.put(f"{name}.weight", weight)
        self.put(f"{name}.bias", bias)
        self.eps.append(float(f"{next((a.f for a in node.attribute if a.name == 'epsilon'), 1e-5):.6g}"))

    def attention(self, name: str) -> None:
        """q, k and v by one layer or by three, and the products; the scale of the first says how wide a head is."""
        layers = [self.layer() for _ in range(self._layers(0)[0])]
        scale, scores = 1.0, None
        for kind in iter(self.peek, "Softmax"):
            node = self.take("MatMul", "Mul", "Div", *(("Add",) if self._adds_zero() else ()))
            if kind in ("Mul", "Div"):
                scale *= float(self.one(node).item()) ** (1 if kind == "Mul" else -1)
            elif kind == "MatMul":
                scores = node
        self.take("Softmax")
        if self.peek() == "Where":  # zero for rows of which every value is masked
            self.take("Where")
        self.take("MatMul")
        if len(layers) == 3 and scores is not None:
            first = [self.origin(given, [result for *_, result in layers]) for given in scores.input]
            layers.sort(key=lambda layer: first.index(layer[2]) if layer[2] in first else 2)
        for part, arrays in zip(("weight", "bias"), zip(*(layer[:2] for layer in layers), strict=True), strict=True):
            self.put(f"{name}.qkv.{part}", np.concatenate(arrays))
        self.heads.append(max(1, round(layers[0][0].shape[1] * scale**2)))
        self.linear(f"{name}.proj")

    def origin(self, name: str, ends: list[str]) -> str:
        """Which of some results a value was made of, by operators with one operand that is no constant."""
        while name not in ends and (node := self.producers.get(name)) is not None and node.input:
            name = next((given for given in node.input if self.constant(given) is None), "")
        return name

    def block(self, name: str) -> None:
        """One block of a transformer."""
        self.norm(f"{name}.norm1")
        self.attention(f"{name}.attn")
        self.take("Add")
        self.norm(f"{name}.norm2")
        self.linear(f"{name}.mlp.fc1")
        for kind in ("Gelu",) if self.peek() == "Gelu" else ("Div", "Erf", "Add", "Mul", "Mul"):
            self.take(kind)
        self.linear(f"{name}.mlp.fc2")
        self.take("Add")

    def blocks(self, name: str) -> int:
        """As many as there are: a norm and one or three linear layers that a product without parameters follows."""
        count = 0
        while self.peek() == "LayerNormalization":
            layers, ahead = self._layers(1)
            if layers not in (1, 3) or self.peek(ahead) not in ("MatMul", "Mul", "Div") or self._has_weight(ahead):
                break
            self.block(f"{name}.blocks.{count}")
            count += 1
        return count

    def _layers(self, ahead: int) -> tuple[int, int]:
        """How many linear layers come one after another, from a coming node on, and the node after them."""
        count = 0
        while self.peek(ahead) == "Gemm" or self._has_weight(ahead):
            count, ahead = count + 1, ahead + (2 if self.peek(ahead) == "MatMul" and self._has_bias(ahead + 1) else 1)
        return count, ahead

    def _has_weight(self, ahead: int) -> bool:
        return self.peek(ahead) == "MatMul" and bool(self.parameters(self.nodes[self.at + ahead]))

    def _has_bias(self, ahead: int) -> bool:
        arrays = self.parameters(self.nodes[self.at + ahead]) if self.peek(ahead) == "Add" else []
        return [array.ndim for array in arrays] == [1]

    def _adds_zero(self) -> bool:
        """Whether the next node adds a mask that masks nothing."""
        arrays = self.parameters(self.nodes[self.at]) if self.peek() == "Add" else []
        return len(arrays) == 1 and not arrays[0].any()

    # ------------------------------------------------------------------------------------------------------ the whole

    def whole(self) -> tuple[State, dict[str, Any]]:
        """Parameters under their published names, and the fields of the configuration."""
        conv = self.take("Conv")
        weight, bias = self.some(conv, 2)
        self.put("encoder.patch_embed.proj.weight", weight)
        self.put("encoder.patch_embed.proj.bias", bias)
        extra = self.parameters(self.take("Concat"))
        for token, array in zip(("encoder.cls_token", "encoder.dist_token"), extra, strict=False):
            self.put(token, array)
        self.put("encoder.pos_embed", self.one(self.take("Add")))
        layers = self.blocks("encoder")
        self.norm("encoder.norm")
        fields: dict[str, Any] = {
            "image_size": tuple(self.image[1][2:]),
            "patch": weight.shape[-1],
            "d_model": weight.shape[0],
            "n_layers": layers,
            "distilled": len(extra) == 2,
            "norm_eps": self.eps[-1],
            "normalization": "deit" if len(extra) == 2 else "vit",
        }
        fields |= {"window": fields["image_size"], "stride": fields["image_size"]}
        if self.classifies:
            fields |= self._heads(len(extra), min(self.image[1][2:]))
        else:
            fields |= self._decoder(self.state)
            if self.peek():
                self.take("Resize")
        if self.peek():
            self.take("nothing")
        hidden = self.state.get("encoder.blocks.0.mlp.fc1.bias", torch.zeros(1)).shape[0]
        return self.state, fields | {"n_heads": self.heads[0] if layers else 1, "mlp_dim": hidden}

    def _heads(self, count: int, size: int) -> dict[str, Any]:
        """A linear layer for every extra token, and their mean."""
        for name in ("head", "head_dist")[:count]:
            self.linear(name)
        if count == 2:
            self.take("Add")
            self.take("Div", "Mul")
        classes = self.state["head.bias"].shape[0]
        return {"decoder": "linear", "n_cls": classes, "im_size": int(size / CROP)}

    def _decoder(self, state: dict[str, Tensor]) -> dict[str, Any]:
        if self.peek(self._layers(0)[1]) != "Concat":
            self.linear("decoder.head")
            return {"decoder": "linear", "n_cls": state["decoder.head.bias"].shape[0]}
        self.linear("decoder.proj_dec")
        self.put("decoder.cls_emb", self.one(self.take("Concat")))
        before = len(self.heads)
        layers = self.blocks("decoder")
        self.norm("decoder.decoder_norm")
        self.put("decoder.proj_patch", self.one(self.take("MatMul")))
        self.put("decoder.proj_classes", self.one(self.take("MatMul")))
        for kind in ("ReduceL2", "Div", "ReduceL2", "Div", "MatMul"):
            self.take(kind)
        self.norm("decoder.mask_norm")
        _, classes, width = state["decoder.cls_emb"].shape
        return {
            "n_cls": classes,
            "d_decoder": width,
            "dec_layers": layers,
            "dec_heads": self.heads[before] if layers else 1,
            "dec_mlp_dim": state["decoder.blocks.0.mlp.fc1.bias"].shape[0] if layers else 0,
            "dec_norm_eps": self.eps[-1],
        }
