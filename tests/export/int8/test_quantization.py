from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from small_run import Exported

from toco_core.errors import ExportError
from toco_core.manifest import read_manifest
from toco_export.cli import main
from toco_export.graph import ServedModel, exported_model
from toco_export.int8 import calibration
from toco_export.int8.calibration import LayerCalibration, calibrate
from toco_export.int8.quantization import describe_noise, quantize, write_quantized
from toco_export.onnx.file import count_product_types, export_onnx
from toco_export.onnx.reduced import product_layers
from toco_export.parity.verification import Candidate, verify
from toco_export.runtimes import open_onnx, torch_segmenter
from toco_export.tensorrt.builder import build_engine
from toco_train.models.toco import ToCo

FC2 = "backbone.vit.blocks.2.mlp.fc2"


@pytest.fixture(scope="module")
def calibrations(model: ToCo, images: np.ndarray) -> dict[str, LayerCalibration]:
    return calibrate(model, images[:, None])


@pytest.fixture(scope="module")
def int8_file(exported: Exported, calibrations, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    bounds = {name: found.bound for name, found in calibrations.items()}
    write_quantized(exported.artefacts / "model.onnx", path, bounds)
    return path


def test_every_linear_layer_is_calibrated_and_the_network_left_as_it_was(model: ToCo, images: np.ndarray):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = calibrate(model, [images])
    linear = [name for name, layer in product_layers(model) if isinstance(layer, torch.nn.Linear)]
    assert list(found) == linear
    assert len(linear) == 4 * 4
    assert all(layer.bound > 0 and 0 < layer.noise < 0.01 for layer in found.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def with_large_channels(model: ToCo) -> ToCo:
    """The same network with a few channels of each MLP 2,000 times as large, and the next layer used to it."""
    hostile = copy.deepcopy(model)
    with torch.no_grad():
        for block in hostile.backbone.vit.blocks:
            block.mlp.fc1.weight[:8] *= 2000
            block.mlp.fc2.weight[:, :8] /= 2000
    return hostile


def test_channels_far_beyond_the_others_are_noise_for_all(model: ToCo, images: np.ndarray, calibrations):
    found = calibrate(with_large_channels(model), images[:, None])
    assert found[FC2].noise > 50 * calibrations[FC2].noise
    assert {name.rpartition(".")[2] for name in sorted(found, key=lambda name: -found[name].noise)[:4]} == {"fc2"}
    unchanged = "backbone.vit.blocks.0.attn.qkv"
    assert found[unchanged] == calibrations[unchanged]


def test_a_few_large_numbers_are_cut_off_where_that_leaves_less_noise():
    layer = torch.nn.Linear(64, 8, bias=False).requires_grad_(False)
    tokens = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert calibration._least_noise(layer, tokens, 4.0).bound == pytest.approx(4.0)
    assert calibration._least_noise(layer, tokens, 12.0).bound == pytest.approx(0.3 * 12.0)


def test_weights_have_seven_bits_and_a_scale_for_each_channel_and_nothing_has_a_zero_point(int8_file: Path):
    graph = onnx.load(int8_file).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [array for array in constants.values() if array.dtype == np.int8 and array.ndim == 2]
    assert len(weights) == 4 * 4
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) == 64
    nodes = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(not constants[node.input[2]].any() for node in nodes)
    scales = [constants[node.input[1]] for node in nodes if node.input[0] in constants]
    assert {scale.shape for scale in scales} == {(192,), (64,), (256,)}
    assert count_product_types(int8_file) == {"int8": 16, "fp32": 4 * 2 + 4}


def test_int8_answers_like_fp32_by_products_of_bytes(exported: Exported, int8_file: Path, images: np.ndarray):
    expected = open_onnx(exported.artefacts / "model.onnx").segment(images)
    session = open_onnx(int8_file)
    answer = session.segment(images)
    assert session.fused["MatMulIntegerToFloat"] == 16
    assert np.mean(answer.mask == expected.mask) >= 0.995
    assert 0 < np.abs(answer.logits - expected.logits).max() < 0.2, "it must round, but not much"


def test_products_of_bytes_are_exact_on_this_processor(tmp_path: Path):
    """The largest numbers that the file can hold: with 8 bits on both sides AVX2 would saturate here."""
    width = 256
    inputs = np.full((1, 4, width), 127, np.float32)
    float_file, int8_file = tmp_path / "f.onnx", tmp_path / "i.onnx"
    weight = np.full((width, width), 1, np.float32)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "model.a.weight_transposed"], ["y"], "product")], "g",
        [value("x", TensorProto.FLOAT, inputs.shape)], [value("y", TensorProto.FLOAT, inputs.shape)],
        [numpy_helper.from_array(weight, "model.a.weight_transposed")],
    )  # fmt: skip
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), float_file
    )
    write_quantized(float_file, int8_file, {"a": 127.0})
    session = onnxruntime.InferenceSession(str(int8_file), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": inputs})[0], 127.0 * width, rtol=1e-5)
    np.testing.assert_allclose(session.run(None, {"x": -inputs})[0], -127.0 * width, rtol=1e-5)


@pytest.mark.parametrize("needed", [0, 1, 5, 15])
def test_the_gate_keeps_the_noisiest_layers_in_fp32_and_no_more_than_it_must(
    exported: Exported, calibrations, tmp_path: Path, needed: int
):
    path, trials = tmp_path / "model.int8.onnx", []

    def is_inside(file: Path) -> bool:
        trials.append(count_product_types(file)["int8"])
        return trials[-1] <= 16 - needed

    kept = quantize(exported.artefacts / "model.onnx", path, calibrations, is_inside)
    assert kept == tuple(sorted(calibrations, key=lambda name: -calibrations[name].noise)[:needed])
    assert count_product_types(path)["int8"] == 16 - needed
    assert trials[-1] == 16 - needed, "what is written last is what was tried last"
    assert len(trials) <= 6


def test_a_gate_that_nothing_passes_is_said(exported: Exported, calibrations, tmp_path: Path):
    with pytest.raises(ExportError, match=r"does not stay inside its gate with any layer quantised; .*--max-drop"):
        quantize(exported.artefacts / "model.onnx", tmp_path / "x.onnx", calibrations, lambda _: False)


def test_a_layer_that_the_file_does_not_name_is_said(exported: Exported, tmp_path: Path):
    with pytest.raises(ExportError, match=r"has no product named after backbone\.nowhere"):
        write_quantized(exported.artefacts / "model.onnx", tmp_path / "x.onnx", {"backbone.nowhere": 1.0})


def test_weights_keep_their_layers_names_where_all_biases_are_the_same(model: ToCo, tmp_path: Path):
    """An untrained network's biases are all zeros, and of what is the same the graph keeps one."""
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    export_onnx(ServedModel(exported_model(plain)).eval(), tmp_path / "model.onnx")
    linear = [name for name, layer in product_layers(plain) if isinstance(layer, torch.nn.Linear)]
    write_quantized(tmp_path / "model.onnx", tmp_path / "model.int8.onnx", dict.fromkeys(linear, 1.0))
    assert count_product_types(tmp_path / "model.int8.onnx")["int8"] == len(linear)


def test_noise_is_told_in_decibels_the_worst_first():
    calibrations = {"a": LayerCalibration(1, 1e-4), "b": LayerCalibration(1, 1e-2), "c": LayerCalibration(1, 0)}
    assert describe_noise(calibrations, list(calibrations)) == "b 20 dB, a 40 dB, c 120 dB"


def test_an_engine_multiplies_bytes_too(exported: Exported, int8_file: Path, tmp_path: Path):
    profile = read_manifest(exported.repository).profile
    report = build_engine(
        int8_file, tmp_path / "model.int8.rtx", profile, target="tensorrt-rtx", progress=lambda _: None
    )
    assert report.product_types["int8"] == 16


@pytest.mark.usefixtures("traced_before")
def test_an_int8_export_is_placed_with_what_stays_in_fp32(run_folder: Path, tmp_path: Path):
    repository = tmp_path / "repository"
    arguments = [str(run_folder), "--precision", "int8", "--target", "onnx", "--repository", str(repository)]
    assert main(arguments) == 0
    manifest = read_manifest(repository)
    [artefact] = [artefact for artefact in manifest.artefacts if artefact.precision == "int8"]
    assert artefact.file == "model.int8.onnx"
    assert {"decoder.conv8", "backbone.vit.patch_embed.proj"} <= set(artefact.kept_fp32)
    assert min(parity.mask_agreement for parity in manifest.parity if parity.file == artefact.file) >= 0.995
    report = (repository / "export_report.md").read_text()
    assert "linear layers in int8, calibrated on 4 images (others than those below)" in report
    assert "MatMulIntegerToFloat" in report
    assert 'key: "onnx_int8"' in (repository / "toco" / "config.pbtxt").read_text()


def test_where_plain_int8_loses_the_mask_the_gate_finds_the_layers_that_lose_it(
    model: ToCo, images: np.ndarray, tmp_path: Path
):
    hostile = with_large_channels(model)
    fp32_file, int8_file = tmp_path / "model.onnx", tmp_path / "model.int8.onnx"
    export_onnx(ServedModel(exported_model(hostile)).eval(), fp32_file)
    expected = [torch_segmenter(ServedModel(hostile))(images)]
    candidate = Candidate("int8", "int8", 0.995, lambda: open_onnx(int8_file).segment)

    def is_inside(_: Path) -> bool:
        return not verify(expected, [candidate], [images]).failures

    found = calibrate(hostile, images[:, None])
    write_quantized(fp32_file, int8_file, {name: layer.bound for name, layer in found.items()})
    assert not is_inside(int8_file), "without the gate this fails"
    kept = quantize(fp32_file, int8_file, found, is_inside)
    assert kept
    assert set(kept) <= {f"backbone.vit.blocks.{block}.mlp.fc2" for block in range(4)}
    assert is_inside(int8_file)
