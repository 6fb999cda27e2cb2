"""A network whose answers can be worked out by hand, in a model repository like those that toco-export writes.

Label of a pixel: the largest of 20 (0, background), 2R - G - B (1, red), 2G - R - B (2, green) and R + G + B - 450
(3, bright). Its confidence: 255 times the softmax of these four, divided by 64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from toco_core.files import atomic_folder
from toco_core.fitting import network_sizes
from toco_core.manifest import Artefact, Manifest, Profile, Shape, sha256_of
from toco_export.repository import artefact_folder, complete_repository

CLASSES = ("red", "green", "bright, very")
PALETTE = ((0, 0, 0), (230, 25, 75), (60, 180, 75), (0, 130, 200))
IMAGE_SIZE = 96

BLACK, RED, GREEN, WHITE = (0, 0, 0), (220, 30, 30), (30, 220, 30), (250, 250, 250)
COLOURS = (BLACK, RED, GREEN, WHITE)  # of labels 0 to 3

UInt8Array = npt.NDArray[np.uint8]


def write_toy_onnx(path: Path, order: tuple[int, ...] = (0, 1, 2, 3)) -> None:
    """Write the network: uint8 ``[B, H, W, 3]`` to ``mask`` and ``confidence``, uint8 ``[B, H, W]``.

    Label k means what label ``order[k]`` means above.
    """
    weights = np.array([[0, 2, -1, 1], [0, -1, 2, 1], [0, -1, -1, 1]], np.float32)
    constants = {
        "weights": weights[:, order],
        "bias": np.array([20, 0, 0, -450], np.float32)[list(order)],
        "temperature": np.float32(64),
        "scale": np.float32(255),
        "last_axis": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "weights"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["labels"], axis=-1, keepdims=0),
        helper.make_node("Cast", ["labels"], ["mask"], to=TensorProto.UINT8),
        helper.make_node("Div", ["scores", "temperature"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ReduceMax", ["probabilities", "last_axis"], ["winner"], keepdims=0),
        helper.make_node("Mul", ["winner", "scale"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["confidence"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", "H", "W", 3])],
        [helper.make_tensor_value_info(name, TensorProto.UINT8, ["B", "H", "W"]) for name in ("mask", "confidence")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def toy_manifest(onnx_file: Path, **changes: object) -> Manifest:
    """Describe the toy network as toco-export describes a real one."""
    values: dict[str, object] = {
        "classes": CLASSES,
        "palette": PALETTE,
        "patch_size": 16,
        "image_size": IMAGE_SIZE,
        "sizes": network_sizes(IMAGE_SIZE, 16),
        "backbone": "toy",
        "opset": 20,
        "profile": Profile(
            min=Shape(batch=1, height=32, width=32),
            opt=Shape(batch=1, height=IMAGE_SIZE, width=IMAGE_SIZE),
            max=Shape(batch=8, height=512, width=512),
        ),
        "artefacts": (artefact(onnx_file),),
        "parity": (),
        "versions": {"onnx": onnx.__version__},
        "created": "2026-11-22T12:00:00Z",
    }
    return Manifest.model_validate({**values, **changes})


def artefact(path: Path) -> Artefact:
    """Describe an fp32 ONNX file."""
    return Artefact(
        file=path.name, format="onnx", precision="fp32", num_bytes=path.stat().st_size, sha256=sha256_of(path)
    )


def write_toy_repository(folder: Path, *, order: tuple[int, ...] = (0, 1, 2, 3), **changes: object) -> Path:
    """Write a model repository around the toy network and return its path; ``changes`` are the manifest's."""
    with atomic_folder(folder) as temporary:
        onnx_file = artefact_folder(temporary) / "model.onnx"
        onnx_file.parent.mkdir(parents=True)
        write_toy_onnx(onnx_file, order)
        complete_repository(temporary, toy_manifest(onnx_file, **changes))
    return folder


def slow_down(repository: Path, seconds: float) -> None:
    """Let each run of the network of a repository take longer."""
    code = repository / "toco/1/model.py"
    slow = f"        __import__('time').sleep({seconds})\n        batch = images[0]"
    code.write_text(code.read_text().replace("        batch = images[0]", slow))


def quadrants(height: int, width: int) -> UInt8Array:
    """Return an RGB image, uint8 ``[H, W, 3]``: black, red / green, white."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, width // 2 :] = RED
    image[height // 2 :, : width // 2] = GREEN
    image[height // 2 :, width // 2 :] = WHITE
    return image


def quadrant_labels(mask: UInt8Array) -> list[int]:
    """Return the label of each quadrant, row by row; fails where a quadrant is not of one label but at its rim."""
    rows, columns = np.array_split(np.arange(mask.shape[0]), 2), np.array_split(np.arange(mask.shape[1]), 2)
    labels = []
    for row in rows:
        for column in columns:
            y, x = len(row) // 4, len(column) // 4
            inner = mask[np.ix_(row[y : len(row) - y], column[x : len(column) - x])]
            assert inner.min() == inner.max(), f"a quadrant has the labels {np.unique(inner)}"
            labels.append(int(inner[0, 0]))
    return labels
