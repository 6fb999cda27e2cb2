"""The model ``toco`` on an engine of TensorRT-RTX.

Without a GPU: its memory is the CPU's, and a stand-in for the library's runtime answers with the toy ONNX file.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime
import pytest
import tensorrt_rtx
from google.protobuf import json_format
from toy_model import artefact, quadrants, toy_manifest, write_toy_onnx

from toco_export.repository import artefact_folder, model_config

CODE = Path(__file__).parents[3] / "triton_models/toco/1/model.py"
DEVICE = 1
ENGINE = "model.fp16.rtx"
PLAN = b"an engine"

CpuValue = onnxruntime.OrtValue
Severity = tensorrt_rtx.ILogger.Severity


class GpuValue:
    """Stands in for ``onnxruntime.OrtValue`` on the GPU: what lies there is reached by copies and addresses alone."""

    def __init__(self, memory: CpuValue, device_type: str, device_id: int) -> None:
        assert (device_type, device_id) == ("cuda", DEVICE)
        self.memory = memory
        ON_GPU[memory.data_ptr()] = self

    @classmethod
    def ortvalue_from_numpy(cls, array: np.ndarray, device_type: str, device_id: int) -> GpuValue:
        return cls(CpuValue.ortvalue_from_numpy(array.copy()), device_type, device_id)

    @classmethod
    def ortvalue_from_shape_and_type(cls, shape: list[int], kind: type, device_type: str, device_id: int) -> GpuValue:
        return cls(CpuValue.ortvalue_from_shape_and_type(shape, kind), device_type, device_id)

    def data_ptr(self) -> int:
        return self.memory.data_ptr()

    def numpy(self) -> np.ndarray:
        return self.memory.numpy()


ON_GPU: WeakValueDictionary[int, GpuValue] = WeakValueDictionary()


class Runtime:
    """Stands in for TensorRT-RTX from the runtime on; ``fault`` names what fails."""

    def __init__(self, logger: Any, network: onnxruntime.InferenceSession, machine: SimpleNamespace) -> None:
        assert machine.is_current, "TensorRT binds an engine to the current GPU, which a tensor there has to choose"
        self.logger, self.network, self.machine = logger, network, machine

    def fails(self, step: str, message: str) -> bool:
        if self.machine.fault == step:
            self.logger.log(Severity.ERROR, message)
            self.logger.log(Severity.WARNING, "more of no interest")
        return self.machine.fault == step

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        assert plan == PLAN
        return None if self.fails("deserialize_cuda_engine", "the engine is for another GPU") else Engine(self)


class Engine:
    num_io_tensors = 3

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def get_tensor_name(self, index: int) -> str:
        return ("confidence", "image", "mask")[index]  # TensorRT promises no order

    def create_execution_context(self) -> Context | None:
        return None if self.runtime.fails("create_execution_context", "out of memory") else Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.shape = engine, ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "image"
        self.shape = shape
        return not self.engine.runtime.fails("set_input_shape", "outside of the profile")

    def get_tensor_shape(self, name: str) -> tensorrt_rtx.Dims:
        return tensorrt_rtx.Dims(self.shape if name == "image" else self.shape[:3])

    def execute_v2(self, bindings: list[int]) -> bool:
        if self.engine.runtime.fails("execute_v2", "illegal memory access"):
            return False
        tensors = {self.engine.get_tensor_name(i): ON_GPU[address] for i, address in enumerate(bindings)}
        for name, tensor in tensors.items():
            assert tensor.memory.shape() == list(self.get_tensor_shape(name))
        network = self.engine.runtime.network
        for name in ("mask", "confidence"):
            [answer] = network.run([name], {"image": tensors["image"].numpy()})
            tensors[name].memory.update_inplace(answer)
        return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The version folder of a repository with the toy network as ONNX and as an engine."""
    version = artefact_folder(tmp_path)
    version.mkdir(parents=True)
    write_toy_onnx(version / "model.onnx")
    (version / ENGINE).write_bytes(PLAN)
    return version


def open_network(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The model's code with a stand-in for what Triton gives it; ``pb_utils.warnings`` collects what it logs."""
    warnings: list[str] = []
    utils = SimpleNamespace(
        warnings=warnings,
        Logger=SimpleNamespace(log_warn=warnings.append),
        Tensor=lambda name, array: (name, array),
        TritonError=lambda message: message,
        InferenceResponse=lambda tensors=(), error=None: SimpleNamespace(tensors=dict(tensors), error=error),
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(as_numpy=lambda: request[name]),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    spec = importlib.util.spec_from_file_location("served_toco", CODE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A machine with the library and the GPU, neither of which ONNX Runtime sees; ``fault`` breaks a step."""
    state, network = SimpleNamespace(fault="", is_current=False), open_network(folder)

    def on_gpu(*given: Any) -> GpuValue:
        if state.fault == "ortvalue_from_numpy":
            raise RuntimeError("CUDA driver version is insufficient\nfor CUDA runtime version")
        state.is_current = True
        return GpuValue.ortvalue_from_numpy(*given)

    library = SimpleNamespace(
        ILogger=tensorrt_rtx.ILogger, __version__="1.2.3", Runtime=lambda logger: Runtime(logger, network, state)
    )
    value = SimpleNamespace(
        ortvalue_from_numpy=on_gpu, ortvalue_from_shape_and_type=GpuValue.ortvalue_from_shape_and_type
    )
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    monkeypatch.setattr(onnxruntime, "OrtValue", value)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    yield state
    assert not ON_GPU, "the GPU's memory is given back"


def started(code: ModuleType, folder: Path, kind: str = "GPU") -> Any:
    """Start the model as Triton does, on GPU ``DEVICE`` or on the CPU."""
    onnx_file, engine = folder / "model.onnx", artefact(folder / ENGINE)
    engine = engine.model_copy(update={"format": "tensorrt-rtx", "precision": "fp16"})
    config = model_config(toy_manifest(onnx_file, artefacts=(artefact(onnx_file), engine)))
    model = code.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)),
            "model_repository": str(folder.parent),
            "model_version": folder.name,
            "model_instance_kind": kind,
            "model_instance_device_id": str(DEVICE),
        }
    )
    return model


def requests(*shapes: tuple[int, int, int]) -> list[Any]:
    """Requests of ``(images, height, width)``, each image another."""

    class Request(dict):
        def is_cancelled(self) -> bool:
            return False

    return [Request(image=np.stack([np.roll(quadrants(h, w), 5 * i, axis=1) for i in range(n)])) for n, h, w in shapes]


def assert_right(model: Any, folder: Path, *shapes: tuple[int, int, int]) -> None:
    """Compare answers to requests that come together with those of the ONNX file."""
    asked, network = requests(*shapes), open_network(folder)
    for request, response in zip(asked, model.execute(asked), strict=True):
        assert response.error is None
        for name, answer in zip(("mask", "confidence"), network.run(["mask", "confidence"], request), strict=True):
            np.testing.assert_array_equal(response.tensors[name], answer)


def test_the_engine_answers_what_the_network_does_at_any_size_and_batch(code, machine, folder):
    model = started(code, folder)
    assert isinstance(model._session, code.RtxSession)
    assert code.pb_utils.warnings == []
    assert_right(model, folder, (1, 64, 96), (3, 96, 64), (2, 64, 96))
    assert_right(model, folder, (1, 32, 512))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("ortvalue_from_numpy", "CUDA driver version is insufficient for CUDA runtime version"),
        ("deserialize_cuda_engine", "TensorRT-RTX 1.2.3 does not load the engine: the engine is for another GPU"),
        ("create_execution_context", "there is no room to run the engine: out of memory"),
        ("set_input_shape", "the engine takes no image (1, 32, 32, 3): outside of the profile"),
        ("execute_v2", "the engine stopped: illegal memory access"),
    ],
)
def test_an_engine_that_does_not_run_leaves_onnx_runtime_and_one_warning(code, machine, folder, fault, reason):
    machine.fault = fault
    model = started(code, folder)
    assert code.pb_utils.warnings == [f"GPU 1 does not run {ENGINE}: ONNX Runtime instead ({reason})"]
    assert_right(model, folder, (2, 64, 96))


def test_a_missing_library_leaves_onnx_runtime_and_one_warning(code, machine, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    model = started(code, folder)
    [warning] = code.pb_utils.warnings
    assert warning.startswith(f"GPU 1 does not run {ENGINE}: ONNX Runtime instead (import of tensorrt_rtx halted")
    assert_right(model, folder, (1, 64, 96))


def test_the_real_library_refuses_what_is_no_engine_of_this_machines(code, folder, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    model = started(code, folder)
    [warning] = code.pb_utils.warnings
    assert warning.startswith(f"GPU 1 does not run {ENGINE}: ONNX Runtime instead (")
    assert_right(model, folder, (1, 64, 96))


def test_a_failure_on_the_way_fails_its_requests_with_the_reason_and_no_others(code, machine, folder):
    model = started(code, folder)
    machine.fault = "execute_v2"
    [response] = model.execute(requests((1, 64, 64)))
    assert response.error == "the engine stopped: illegal memory access"
    machine.fault = ""
    assert_right(model, folder, (1, 64, 64))


def test_an_instance_on_the_cpu_leaves_the_engine_alone(code, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    model = started(code, folder, "CPU")
    assert code.pb_utils.warnings == []
    assert_right(model, folder, (1, 64, 96))


@pytest.mark.parametrize(
    ("stand_in", "real"),
    [
        (GpuValue, CpuValue),
        (Runtime, tensorrt_rtx.Runtime),
        (Engine, tensorrt_rtx.ICudaEngine),
        (Context, tensorrt_rtx.IExecutionContext),
    ],
)
def test_the_stand_ins_have_nothing_that_the_real_ones_lack(stand_in, real):
    assert {name for name in vars(stand_in) if not name.startswith("_")} - {"fails"} <= set(dir(real))
