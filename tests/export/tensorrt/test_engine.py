from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import tensorrt_rtx
from onnx import TensorProto, helper
from small_run import Exported

from toco_core.errors import ExportError
from toco_core.fitting import network_sizes
from toco_core.manifest import Profile, Shape
from toco_export.config import ExportConfig, resolve_profile
from toco_export.onnx.file import require_precision
from toco_export.tensorrt.builder import BuildOptions, EngineLibraryError, _configure, _network_flags, build_engine
from toco_export.tensorrt.engine_report import EngineLayer, EngineReport, layers_of_inspector, layers_of_log

PROFILE, _ = resolve_profile(ExportConfig(), 8, network_sizes(64, 8))

INSPECTOR_JSON = """{"Layers": [
 {"Name": "copy", "LayerType": "Reformat", "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}]},
 {"Name": "qkv", "LayerType": "gemm", "Inputs": [{"Name": "t", "Datatype": "Half", "Format": "(Linear) Row major"}]},
 {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [{"Name": "u", "Format/Datatype": "Channel major FP16"}]},
 "a layer without detail"
], "Bindings": ["image"]}"""

ENGINE_LOG = """Layers:
Name: a_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:\x20
Name: cast, LayerType: kgen, Inputs: [ { Name: image, Dimensions: [-1,-1,-1,3], Datatype: UInt8, Format: (Linear) }], \
Constants: [ { Name: c, Dimensions: [1], Datatype: Float, Format: (Linear) }], \
Outputs: [ { Name: y, Dimensions: [-1], Datatype: Half, Format: (Linear) }], TacticName: t, StreamId: 0, Metadata:\x20
Name: fc, LayerType: gemm, Inputs: [ { Name: y, Datatype: Half, Format: x }, { Name: z, Datatype: Half, Format: x }], \
Outputs: [ { Name: w, Datatype: Float, Format: (Linear) }], TacticName: t, StreamId: 0, Metadata:\x20
"""


def silent(text: str) -> None:
    pass


def built(source: Path, engine: Path, **options: Any) -> EngineReport:
    """Build an engine of TensorRT-RTX."""
    return build_engine(
        source, engine, PROFILE, target="tensorrt-rtx", progress=silent, options=BuildOptions(**options)
    )


@pytest.mark.parametrize(("file", "precision"), [("model.fp16.onnx", "fp16"), ("model.onnx", "fp32")])
def test_an_engine_is_built_without_a_gpu_in_the_precision_of_its_file(
    exported: Exported, tmp_path: Path, file: str, precision: str
):
    engine = tmp_path / "model.rtx"
    report = built(exported.artefacts / file, engine)
    assert set(report.product_types) == {precision}
    assert report.product_types[precision] >= 4 * 4 + 4, "four products a block at least, and four convolutions"
    assert engine.stat().st_size > 100_000
    assert report.module == "tensorrt_rtx"
    assert report.version.startswith("1.")


def test_the_engine_takes_the_range_of_inputs_that_the_profile_states(
    exported: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    profile = Profile(
        min=Shape(batch=1, height=16, width=24),
        opt=Shape(batch=2, height=64, width=72),
        max=Shape(batch=5, height=96, width=104),
    )
    steps: list[str] = []
    with caplog.at_level(logging.DEBUG, logger="toco_export.tensorrt.builder"):
        source = exported.artefacts / "model.fp16.onnx"
        build_engine(source, tmp_path / "model.rtx", profile, target="tensorrt-rtx", progress=steps.append)
    assert "MinShape: [1,16,24,3], OptShape: [2,64,72,3], MaxShape: [5,96,104,3]" in caplog.text
    assert any(step.startswith("Building engine ") for step in steps)


def test_a_graph_that_tensorrt_cannot_parse_is_reported_with_its_node(tmp_path: Path):
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 8, 8, 3])
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 8, 8, 3])
    node = helper.make_node("Nonsense", ["image"], ["mask"], name="the_culprit", domain="nowhere")
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    path = tmp_path / "bad.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "bad", [image], [mask]), opset_imports=opsets), path)
    with pytest.raises(
        ExportError, match=r"TensorRT [\d.]+ cannot parse bad\.onnx: Nonsense node 'the_culprit': .+; install"
    ):
        built(path, tmp_path / "model.rtx")
    assert not (tmp_path / "model.rtx").exists()


def test_a_missing_library_is_reported_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineLibraryError, match=r"needs the Python module tensorrt, .*: pip install tensorrt$"):
        build_engine(tmp_path / "x.onnx", tmp_path / "model.plan", PROFILE, target="tensorrt", progress=silent)


def test_an_interrupt_during_the_build_stops_it_and_leaves_no_engine(exported: Exported, tmp_path: Path):
    asked = iter([True])

    def interrupt_once(text: str) -> None:
        if next(asked, False):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engine(
            exported.artefacts / "model.fp16.onnx",
            tmp_path / "model.rtx",
            PROFILE,
            target="tensorrt-rtx",
            progress=interrupt_once,
        )
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_inspectors_json_is_read_in_its_old_and_its_new_form():
    layers = layers_of_inspector(INSPECTOR_JSON)
    assert [(layer.kind, layer.input_types) for layer in layers] == [
        ("Reformat", ("FP32",)),
        ("gemm", ("Half",)),
        ("CaskConvolution", ("FP16",)),
    ]


def test_the_builders_log_is_read_with_the_types_of_inputs_alone():
    layers = layers_of_log(ENGINE_LOG)
    assert [(layer.name, layer.kind, layer.input_types) for layer in layers] == [
        ("a_0", "shape_call", ()),
        ("cast", "kgen", ("UInt8",)),
        ("fc", "gemm", ("Half", "Half")),
    ]
    assert report_of(*layers).product_types == {"fp16": 1}


def report_of(*layers: EngineLayer) -> EngineReport:
    return EngineReport(layers, "tensorrt", "9.9")


def test_two_names_of_one_precision_are_one_precision():
    report = report_of(EngineLayer("a", "gemm", ("Half",)), EngineLayer("b", "CaskConvolution", ("FP16",)))
    assert report.product_types == {"fp16": 2}


def test_a_fused_attention_is_counted_and_counts_as_a_product():
    report = report_of(EngineLayer("_gemm_mha_v2_8", "kgen", ("Half",)), EngineLayer("x", "kgen", ("Float",)))
    assert (report.num_fused_attention, report.product_types) == (1, {"fp16": 1})
    assert report.summary() == (
        "tensorrt 9.9: 2 layers (kgen 2); matrix products in fp16 1; fused attention in 1 layers."
    )


def test_the_attention_of_a_half_precision_engine_is_fused_in_every_block(exported: Exported):
    [note] = [line for line in exported.report.splitlines() if "model.fp16.rtx: tensorrt_rtx" in line]
    assert "fused attention in 4 layers" in note


def test_an_engine_in_another_precision_than_asked_for_is_refused():
    found = report_of(EngineLayer("a", "gemm", ("Float",)), EngineLayer("b", "gemm", ("Half",))).product_types
    with pytest.raises(ExportError, match=r"products of model\.rtx are 1 in fp32, 1 in fp16, expected fp16: the types"):
        require_precision(found, "fp16", 0, "model.rtx")
    require_precision(found, "fp16", 1, "model.rtx")  # as many may be fp32 as were kept


def test_an_engine_that_reports_no_product_is_refused():
    with pytest.raises(ExportError, match="are not to be found, expected fp16"):
        require_precision(report_of(EngineLayer("a", "kgen", ("Half",))).product_types, "fp16", 0, "model.rtx")


def test_memory_timings_and_compatibility_reach_the_builder(tmp_path: Path):
    trt = tensorrt_rtx
    cache = tmp_path / "timings"
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    config = _configure(trt, builder, PROFILE, BuildOptions(workspace_gib=0.5, timing_cache=cache, portable=True))
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 2**29
    assert config.get_timing_cache() is not None
    assert config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    plain = _configure(trt, builder, PROFILE, BuildOptions())
    assert not plain.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    limit = plain.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
    assert limit > 2**33, "more than the scores of attention in fp32 take at the largest size of a ViT-B"


def test_a_library_that_knows_other_networks_is_told_to_keep_every_type():
    strongly_typed = tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert _network_flags(tensorrt_rtx) == 1 << int(strongly_typed)
    later = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(__members__={}))
    assert _network_flags(later) == 0, "where there is no such flag every network is one"


def test_a_timing_cache_is_written_and_read_again(exported: Exported, tmp_path: Path):
    timings = tmp_path / "cache" / "timings"
    for _ in range(2):
        built(exported.artefacts / "model.fp16.onnx", tmp_path / "model.rtx", timing_cache=timings)
        assert timings.stat().st_size > 0


def test_a_layer_that_needs_more_memory_than_is_allowed_is_reported_with_the_way_out(
    exported: Exported, tmp_path: Path
):
    with pytest.raises(
        ExportError, match=r"cannot build model\.onnx: .*; allow it more than --workspace-gib 0\.0001, or export with"
    ):
        built(exported.artefacts / "model.onnx", tmp_path / "model.rtx", workspace_gib=1e-4)
    assert not (tmp_path / "model.rtx").exists()


def test_a_portable_rtx_engine_is_refused_for_it_is_one(exported: Exported, tmp_path: Path):
    with pytest.raises(ExportError, match="run on all RTX GPUs as they are; leave --portable out"):
        built(exported.artefacts / "model.onnx", tmp_path / "model.rtx", portable=True)
