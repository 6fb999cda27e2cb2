from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from small_run import Exported
from torch import Tensor

from toco.errors import ExportError
from toco_export.graph import ServedModel
from toco_export.onnx_export import EXAMPLE_BATCH, OPSET, export_onnx, product_precision
from toco_export.parity import onnx_segmenter, torch_segmenter
from toco_train.model import ToCo


class FreezesItsBatch(ServedModel):
    """A graph that goes one way for the batch it was traced with, and so would hold for that batch alone."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return (image[..., 0], image[..., 1]) if image.shape[0] == EXAMPLE_BATCH else (image[..., 1], image[..., 0])


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 8, 8), (1, 64, 64), (3, 8, 120), (7, 128, 40), (1, 24, 200), (2, 40, 56)]
)
def test_the_onnx_file_answers_like_pytorch_at_sizes_and_batches_never_traced(
    exported: Exported, model: ToCo, batch: int, height: int, width: int
):
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    mask, confidence = onnx_segmenter(exported.artefacts / "model.onnx")(pixels)
    expected_mask, expected_confidence = torch_segmenter(ServedModel(model))(pixels)
    assert mask.shape == confidence.shape == (batch, height, width)
    assert mask.dtype == confidence.dtype == np.uint8
    assert np.mean(mask == expected_mask) >= 0.999
    assert np.abs(confidence.astype(int) - expected_confidence).max() <= 1


@pytest.mark.parametrize("file", ["model.onnx", "model.fp16.onnx"])
def test_the_onnx_file_states_its_contract(exported: Exported, file: str):
    proto = onnx.load(exported.artefacts / file)
    described = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert described == {
        "image": (TensorProto.UINT8, ["batch", "height", "width", 3]),
        "mask": (TensorProto.UINT8, ["batch", "height", "width"]),
        "confidence": (TensorProto.UINT8, ["batch", "height", "width"]),
    }
    assert [opset.version for opset in proto.opset_import if not opset.domain] == [OPSET]
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(metadata["classes"]) == ["a", "b", "c"]
    assert (metadata["patch_size"], metadata["image_size"]) == ("8", "64")
    assert metadata["precision"] == ("fp16" if "fp16" in file else "fp32")


def test_the_onnx_file_holds_no_path_of_the_machine_that_made_it(exported: Exported):
    content = (exported.artefacts / "model.onnx").read_bytes()
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content


def test_the_graph_resizes_without_antialias_which_tensorrt_rejects(exported: Exported):
    resizes = [node for node in onnx.load(exported.artefacts / "model.onnx").graph.node if node.op_type == "Resize"]
    attributes = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in resizes]
    assert sorted(a["mode"] for a in attributes) == [b"cubic", b"linear"]
    assert [a["antialias"] for a in attributes] == [0, 0]
    assert [a["coordinate_transformation_mode"] for a in attributes] == [b"half_pixel", b"half_pixel"]


def test_a_graph_that_would_freeze_its_batch_is_refused(model: ToCo, tmp_path: Path):
    with pytest.raises(ExportError, match=r"no valid ONNX form: \w+: Constraints violated \(batch\)"):
        export_onnx(FreezesItsBatch(model), tmp_path / "model.onnx")


def test_the_precision_is_read_from_the_products_of_the_file_not_from_its_name(exported: Exported):
    assert product_precision(exported.artefacts / "model.onnx") == "fp32"
    assert product_precision(exported.artefacts / "model.fp16.onnx") == "fp16"


def test_a_file_of_mixed_precision_is_refused(tmp_path: Path):
    kinds = {"f": TensorProto.FLOAT, "h": TensorProto.FLOAT16}
    values = [helper.make_tensor_value_info(name, kind, [2, 2]) for name, kind in kinds.items()]
    outputs = [helper.make_tensor_value_info(f"{name}2", kind, [2, 2]) for name, kind in kinds.items()]
    nodes = [helper.make_node("MatMul", [name, name], [f"{name}2"]) for name in kinds]
    path = tmp_path / "mixed.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "mixed", values, outputs)), path)
    with pytest.raises(ExportError, match=r"products of mixed\.onnx are 1 in FLOAT, 1 in FLOAT16; expected one"):
        product_precision(path)


def test_exporting_leaves_the_network_as_it_was(model: ToCo, exported: Exported, run_folder: Path):
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
