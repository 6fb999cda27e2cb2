"""The code of the model ``toco`` on a CPU: sizes, batches, clients that gave up, which graph is opened."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

CODE = Path(__file__).parents[3] / "triton_models/toco/1/model.py"
LIMITS = {"patch_size": "16", "min_height": "32", "max_height": "64", "min_width": "48", "max_width": "96"}


class Error(SimpleNamespace):
    INVALID_ARG, CANCELLED = "invalid", "cancelled"

    def __init__(self, message: str, code: str = "internal") -> None:
        super().__init__(message=message, code=code)


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The model's code with a stand-in for what Triton gives it; ``pb_utils.warnings`` collects what it logs."""
    warnings: list[str] = []
    utils = SimpleNamespace(
        warnings=warnings,
        Logger=SimpleNamespace(log_warn=warnings.append),
        Tensor=lambda name, array: (name, array),
        TritonError=Error,
        InferenceResponse=lambda tensors=(), error=None: SimpleNamespace(tensors=dict(tensors), error=error),
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(as_numpy=lambda: request[name]),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    spec = importlib.util.spec_from_file_location("served_toco_on_a_cpu", CODE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Session:
    """Stands in for ONNX Runtime: labels are the red channel and confidences the green one."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, names: tuple[str, ...], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert names == ("mask", "confidence")
        self.shapes.append(inputs["image"].shape)
        return [inputs["image"][..., 0], inputs["image"][..., 1]]


class Request(dict):
    def __init__(self, number: int, height: int, width: int, *, cancelled: bool = False) -> None:
        image = np.random.default_rng(height + width).integers(0, 256, (number, height, width, 3), dtype=np.uint8)
        super().__init__(image=image)
        self.is_cancelled = lambda: cancelled


def model(code: ModuleType, session: Any) -> Any:
    served = code.TritonPythonModel()
    served._parameters, served._session = LIMITS, session
    return served


def assert_answered(request: Request, response: Any) -> None:
    assert response.error is None
    np.testing.assert_array_equal(response.tensors["mask"], request["image"][..., 0])
    np.testing.assert_array_equal(response.tensors["confidence"], request["image"][..., 1])


@pytest.mark.parametrize(
    ("height", "width", "problem"),
    [
        (32, 48, None), (64, 96, None), (48, 80, None),
        (31, 48, "image height 31 is outside the 32 to 64 that this model was exported for; resize it"),
        (16, 48, "image height 16 is outside the 32 to 64 that this model was exported for; resize it"),
        (80, 96, "image height 80 is outside the 32 to 64 that this model was exported for; resize it"),
        (32, 112, "image width 112 is outside the 48 to 96 that this model was exported for; resize it"),
        (32, 32, "image width 32 is outside the 48 to 96 that this model was exported for; resize it"),
        (33, 48, "image height 33 is not a multiple of the patch size 16; pad to 48"),
        (63, 48, "image height 63 is not a multiple of the patch size 16; pad to 64"),
        (32, 95, "image width 95 is not a multiple of the patch size 16; pad to 96"),
    ],
)  # fmt: skip
def test_sizes_within_the_limits_and_multiples_of_the_patch_are_taken(code, height, width, problem):
    assert code.size_problem(height, width, LIMITS) == problem


def test_requests_of_one_size_run_together_and_each_gets_its_own_answer(code):
    session = Session()
    asked = [Request(1, 32, 48), Request(2, 64, 48), Request(3, 32, 48), Request(1, 64, 96), Request(2, 32, 48)]
    for request, response in zip(asked, model(code, session).execute(asked), strict=True):
        assert_answered(request, response)
    assert sorted(session.shapes) == [(1, 64, 96, 3), (2, 64, 48, 3), (6, 32, 48, 3)]


def test_a_request_alone_runs_as_it_is(code):
    session, request = Session(), Request(2, 32, 48)
    [response] = model(code, session).execute([request])
    assert_answered(request, response)
    assert session.shapes == [(2, 32, 48, 3)]


def test_a_bad_size_fails_alone_as_the_clients_fault(code):
    session, asked = Session(), [Request(1, 32, 48), Request(1, 33, 48), Request(1, 32, 48)]
    first, bad, last = model(code, session).execute(asked)
    assert_answered(asked[0], first)
    assert_answered(asked[2], last)
    assert bad.error.code == "invalid"
    assert bad.error.message == "ImageSizeError: image height 33 is not a multiple of the patch size 16; pad to 48"
    assert session.shapes == [(2, 32, 48, 3)]


def test_nothing_is_run_for_a_client_that_gave_up_while_others_waited_with_it(code):
    session, asked = Session(), [Request(1, 32, 48), Request(1, 32, 48, cancelled=True)]
    answered, cancelled = model(code, session).execute(asked)
    assert_answered(asked[0], answered)
    assert (cancelled.error.message, cancelled.error.code) == ("the client gave up", "cancelled")
    assert session.shapes == [(1, 32, 48, 3)]


def test_a_request_alone_is_not_asked_whether_its_client_gave_up(code):
    session, request = Session(), Request(1, 32, 48, cancelled=True)
    assert_answered(request, model(code, session).execute([request])[0])


def test_a_failure_of_the_runtime_fails_every_request_of_its_size_and_no_other(code):
    class OutOfMemory(Session):
        def run(self, names: tuple[str, ...], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            if len(inputs["image"]) == 2:
                raise MemoryError("no room\nfor 2 images")
            return super().run(names, inputs)

    asked = [Request(1, 32, 48), Request(1, 64, 48), Request(1, 32, 48)]
    first, other, last = model(code, OutOfMemory()).execute(asked)
    assert_answered(asked[1], other)
    assert first.error.message == last.error.message == "no room for 2 images"


@pytest.mark.parametrize(
    ("graphs", "chosen"),
    [({"onnx_fp32": "a.onnx"}, "a.onnx"), ({"onnx_fp32": "a.onnx", "onnx_int8": "b.onnx", "onnx_fp16": "c"}, "b.onnx")],
)
@pytest.mark.parametrize("device", [None, 0])
def test_without_a_gpu_that_onnx_runtime_sees_int8_is_opened_before_fp32(code, monkeypatch, graphs, chosen, device):
    opened: list[Any] = []
    monkeypatch.setattr(code.onnxruntime, "InferenceSession", lambda *given: opened.append(given))
    monkeypatch.setattr(code.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    code.open_session(Path("folder"), {**graphs, "num_threads": "3"}, device)
    [(file, options, providers)] = opened
    assert file == Path("folder") / chosen
    assert options.intra_op_num_threads == 3
    assert providers == ["CPUExecutionProvider"]
    assert code.pb_utils.warnings == []


def test_the_threads_of_a_session_are_all_its_processors_unless_a_number_is_given(code, monkeypatch):
    assert code.cpu_options(0).intra_op_num_threads == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", {0: {2, 5, 7}}.__getitem__)  # of this process
    assert code.cpu_options(0).intra_op_num_threads == 3
    options = code.cpu_options(5)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (5, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
