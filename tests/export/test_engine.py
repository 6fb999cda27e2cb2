from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from small_run import Exported

from toco.errors import ExportError
from toco.manifest import Profile, Shape
from toco_export.description import default_profile
from toco_export.engine import EngineLibraryError, build_engine
from toco_export.engine_report import (
    EngineLayer,
    count_product_types,
    engine_precision,
    layers_of_inspector,
    layers_of_log,
)

PROFILE = default_profile(64, 8)

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


@pytest.mark.parametrize(("file", "precision"), [("model.fp16.onnx", "fp16"), ("model.onnx", "fp32")])
def test_an_engine_is_built_without_a_gpu_in_the_precision_of_its_file(
    exported: Exported, tmp_path: Path, file: str, precision: str
):
    engine = tmp_path / "model.rtx"
    report = build_engine(exported.artefacts / file, engine, PROFILE, target="tensorrt-rtx", progress=silent)
    assert report.precision == precision
    assert set(count_product_types(report.layers)) == {precision}
    assert count_product_types(report.layers)[precision] >= 4 * 4 + 4, (
        "four products a block at least, and four convolutions"
    )
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
    with caplog.at_level(logging.DEBUG, logger="toco_export.engine"):
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
        build_engine(path, tmp_path / "model.rtx", PROFILE, target="tensorrt-rtx", progress=silent)
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
    assert engine_precision(layers) == "fp16"


def test_two_names_of_one_precision_are_one_precision():
    assert (
        engine_precision([EngineLayer("a", "gemm", ("Half",)), EngineLayer("b", "CaskConvolution", ("FP16",))])
        == "fp16"
    )


def test_an_engine_of_mixed_precision_is_refused():
    layers = [
        EngineLayer("a", "gemm", ("Half",)),
        EngineLayer("b", "gemm", ("Float",)),
        EngineLayer("c", "gemm", ("Half",)),
    ]
    with pytest.raises(ExportError, match="products are 2 in fp16, 1 in fp32, expected one precision"):
        engine_precision(layers)


def test_an_engine_that_reports_no_product_is_refused():
    with pytest.raises(ExportError, match="not to be found in its report"):
        engine_precision([EngineLayer("a", "kgen", ("Half",))])
