from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_run import Exported
from torch import Tensor

from toco_core.errors import ExportError
from toco_core.manifest import Shape
from toco_export.graph import ServedModel, exported_model
from toco_export.onnx import file as onnx_file
from toco_export.onnx.file import count_product_types, export_onnx, external_data, save_onnx
from toco_export.onnx.tracing import EXAMPLE_BATCH, OPSET
from toco_export.runtimes import open_onnx, torch_segmenter
from toco_train.models.toco import ToCo
from toco_train.runs.load import load_run


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
    mask, confidence, logits = open_onnx(exported.artefacts / "model.onnx").segment(pixels)
    expected_mask, expected_confidence, expected_logits = torch_segmenter(ServedModel(model))(pixels)
    assert np.abs(logits - expected_logits).max() <= 1e-4 * np.abs(expected_logits).max()
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


@pytest.mark.parametrize("file", ["model.onnx", "model.fp16.onnx"])
def test_every_value_in_the_file_has_a_type_and_a_rank(exported: Exported, file: str):
    graph = onnx.load(exported.artefacts / file).graph
    stated = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    outputs = [name for node in graph.node for name in node.output]
    assert [name for name in outputs if name not in stated] == []
    assert all(kind.elem_type and kind.HasField("shape") for kind in stated.values())


def test_two_exports_of_one_run_give_the_same_bytes(exported: Exported, run_folder: Path, tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from toco_train.runs.load import load_run;"
        "from toco_export.graph import ServedModel, exported_model; from toco_export.onnx.file import export_onnx;"
        "export_onnx(ServedModel(exported_model(load_run(sys.argv[1]))).eval(), Path(sys.argv[2]))"
    )
    again = tmp_path / "elsewhere" / "other_name.onnx"
    again.parent.mkdir()
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", code, str(run_folder), str(again)], check=True, env=environment)
    assert again.read_bytes() == (exported.artefacts / "model.onnx").read_bytes()


@pytest.mark.parametrize("file", ["model.onnx", "model.fp16.onnx", "model.fp16.rtx"])
def test_no_artefact_holds_a_path_or_a_stack_trace(exported: Exported, run_folder: Path, file: str):
    content = (exported.artefacts / file).read_bytes()
    traces = (b".py", b"forward(self", b"Traceback", b"site-packages")
    paths = {str(path).encode() for path in (Path.cwd(), Path.home(), run_folder, Path(torch.__file__).parents[1])}
    assert [found for found in (*traces, *paths) if found in content] == []


def test_nothing_is_left_that_fusing_or_folding_would_take_away(exported: Exported):
    nodes = onnx.load(exported.artefacts / "model.onnx").graph.node
    found = Counter(node.op_type for node in nodes)
    assert found["Transpose"] == 2 + 4 * 4 + 1, "layout, patches; heads in each block; the map of tokens"
    assert found["Cast"] == 3 + 2 * 2, "bytes to floats and back; size and taps of each axis of the embedding"
    assert found["Shape"] <= 4
    constants = {tensor.name for tensor in onnx.load(exported.artefacts / "model.onnx").graph.initializer}
    reshapes = [node for node in nodes if node.op_type == "Reshape"]
    computed = [node.name for node in reshapes if node.input[1] not in constants]
    assert len(reshapes) > 4 * 4, "the test would prove little on fewer"
    assert len(computed) == 1, "the map of tokens: rows and columns are both open there"
    assert found["Squeeze"] <= 2
    assert (found["Gather"], found["Unsqueeze"]) == (2, 2 * 3 + 2), "axes of the embedding; it, and the largest logit"
    assert not found["Identity"]
    inputs = Counter((node.op_type, *node.input, str(sorted(map(str, node.attribute)))) for node in nodes)
    assert max(inputs.values()) == 1, "the same is computed twice"


def test_the_simplified_graph_is_much_smaller_and_onnx_runtime_fuses_it(exported: Exported):
    [line] = [line for line in exported.report.splitlines() if "model.onnx: opset" in line]
    before, after = map(int, re.findall(r"(\d+) operations as traced, (\d+) in the file", line)[0])
    assert before > 1.8 * after
    fused = open_onnx(exported.artefacts / "model.onnx").fused
    assert fused["BiasGelu"] == fused["FusedMatMul"] == 4, "one of each a block"


def test_a_static_export_has_its_position_embedding_baked_in(model: ToCo, tmp_path: Path):
    static = Shape(batch=1, height=40, width=56)
    path = tmp_path / "model.onnx"
    export_onnx(ServedModel(exported_model(model)).eval(), path, static=static)
    graph = onnx.load(path).graph
    assert not {"Gather", "Range", "Floor", "Clip"} & {node.op_type for node in graph.node}, "they resize the embedding"
    weights = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    [embedding] = [weight for weight in weights if weight.shape == (1, 1 + 5 * 7, 64)]
    np.testing.assert_allclose(embedding, model.backbone.position_embedding(5, 7).detach(), atol=1e-6)
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == ["batch", 40, 56, 3]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    expected = torch_segmenter(ServedModel(model))(pixels)
    assert np.array_equal(open_onnx(path).segment(pixels).mask, expected.mask)


def test_a_file_is_one_message_as_protobuf_would_write_it(exported: Exported, tmp_path: Path):
    graph = ir.load(exported.artefacts / "model.onnx")
    path = tmp_path / "model.onnx"
    save_onnx(graph, path)
    written, expected = onnx.load(path), ir.to_proto(graph)
    assert len(written.SerializeToString()) == path.stat().st_size, "of two graphs a reader may take the last alone"
    weights = [{tensor.name: tensor for tensor in proto.graph.initializer} for proto in (written, expected)]
    assert weights[0] == weights[1]
    assert len(weights[0]) > 50
    assert max(len(tensor.raw_data) for tensor in weights[0].values()) > 1 << 14, "a length of three bytes"
    for proto in (written, expected):
        proto.graph.ClearField("initializer")
        del proto.graph.value_info[:]
    assert written == expected


def test_weights_above_the_limit_of_a_file_lie_beside_it(exported: Exported, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(onnx_file, "EXTERNAL_ABOVE_BYTES", 100_000)
    graph = ir.load(exported.artefacts / "model.onnx")
    path = tmp_path / "model.onnx"
    save_onnx(graph, path)
    assert path.stat().st_size < 100_000 < external_data(path).stat().st_size
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    answers = [open_onnx(file).segment(pixels).logits for file in (path, exported.artefacts / "model.onnx")]
    assert np.array_equal(*answers)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_the_graph_resizes_without_antialias_which_tensorrt_rejects(exported: Exported):
    resizes = [node for node in onnx.load(exported.artefacts / "model.onnx").graph.node if node.op_type == "Resize"]
    attributes = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in resizes]
    assert [a["mode"] for a in attributes] == [b"linear"], "the position embedding is resized otherwise"
    assert [a["antialias"] for a in attributes] == [0]
    assert [a["coordinate_transformation_mode"] for a in attributes] == [b"half_pixel"]


def test_a_graph_that_would_freeze_its_batch_is_refused(model: ToCo, tmp_path: Path):
    with pytest.raises(ExportError, match=r"no valid ONNX form: \w+: Constraints violated \(batch\)"):
        export_onnx(FreezesItsBatch(model), tmp_path / "model.onnx")


class NeedsDecomposition(ServedModel):
    """Holds an operation that PyTorch's exporter translates only once it is taken apart."""

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        return torch.rad2deg(super().logits(image))


@pytest.mark.parametrize("kind", [ServedModel, NeedsDecomposition])
def test_networks_of_other_forms_are_exported_too(model: ToCo, tmp_path: Path, kind: type[ServedModel]):
    """timm's own attention, as other attentions than its plain one keep it."""
    served = kind(model).eval()
    export_onnx(served, tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    expected = served.logits(torch.from_numpy(pixels)).detach().numpy()
    got = open_onnx(tmp_path / "model.onnx").segment(pixels).logits
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def test_the_precision_is_read_from_the_products_of_the_file_not_from_its_name(exported: Exported, tmp_path: Path):
    misnamed = shutil.copyfile(exported.artefacts / "model.onnx", tmp_path / "model.fp16.onnx")
    assert count_product_types(misnamed) == {"fp32": 4 * 6 + 4}
    assert count_product_types(exported.artefacts / "model.fp16.onnx") == {"fp16": 4 * 6 + 4}


def test_making_the_form_that_is_traced_leaves_the_network_as_it_was(run_folder: Path):
    model = load_run(run_folder)
    kinds = [type(module) for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    traced = exported_model(model)
    assert [type(module) for module in traced.modules()] != kinds
    assert [type(module) for module in model.modules()] == kinds
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], value) for name, value in weights.items())
