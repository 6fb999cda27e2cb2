"""Shared by the tests of training: golden values, small networks, small data sets."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tests.train.small_runs import give_a_small_projection, small_shapes, train
from toco_core.config import dump_yaml
from toco_train.commands.shapes import main as toco_shapes
from toco_train.config import ModelConfig, ViTSpec, load_config
from toco_train.data.opening import open_source
from toco_train.models.toco import ToCo

GOLDEN = Path(__file__).parent.parent / "golden"
PALETTE = [[0, 0, 0], *([label, 255 - label, 250] for label in range(1, 7))]  # of the data of the finished run
TINY_VIT = ViTSpec(image_size=64, patch_size=16, width=48, depth=4, num_heads=3)


@pytest.fixture(scope="session")
def golden() -> Mapping[str, Tensor]:
    """Inputs and outputs of the published implementation, by ``group/name``."""
    with np.load(GOLDEN / "golden.npz") as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    assert ours.shape == theirs.shape
    return float((ours.detach().double() - theirs.double()).abs().max() / theirs.double().abs().max())


def drawn_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Draw the weights of the golden networks, by their published names (the golden README tells how)."""
    weights = {}
    for key, shape in shapes.items():
        generator = np.random.default_rng(zlib.crc32(key.encode()) + 11)
        value = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
        if ("norm" in key and key.endswith("weight")) or key.endswith("weight_g"):
            value += 1
        weights[key] = torch.from_numpy(value)
    return weights


def published_shapes(width: int, patch: int, grid: int, depth: int, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Spell out the published state dict of a network."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.cls_token": (1, 1, width),
        "encoder.pos_embed": (1, 1 + grid * grid, width),
        "encoder.patch_embed.proj.weight": (width, 3, patch, patch),
        "encoder.patch_embed.proj.bias": (width,),
        "encoder.norm.weight": (width,),
        "encoder.norm.bias": (width,),
        "encoder.head.weight": (1000, width),
        "encoder.head.bias": (1000,),
        "decoder.conv6.weight": (512, width, 3, 3),
        "decoder.conv7.weight": (512, 512, 3, 3),
        "decoder.conv8.weight": (num_labels, 512, 1, 1),
        "classifier.weight": (num_labels - 1, width, 1, 1),
        "aux_classifier.weight": (num_labels - 1, width, 1, 1),
    }
    for block in range(depth):
        for name, shape in {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
        }.items():  # fmt: skip
            shapes[f"encoder.blocks.{block}.{name}"] = shape
    for head in ("proj_head", "proj_head_t"):
        for index, (rows, columns) in {0: (2048, width), 2: (2048, 2048), 4: (256, 2048)}.items():
            shapes[f"{head}.mlp.{index}.weight"] = (rows, columns)
            shapes[f"{head}.mlp.{index}.bias"] = (rows,)
        shapes[f"{head}.last_layer.weight_g"] = (1024, 1)
        shapes[f"{head}.last_layer.weight_v"] = (1024, 256)
    return shapes


def tiny_config(**changes: object) -> ModelConfig:
    """Return the configuration of the tiny golden network, with changes."""
    values = {"backbone": TINY_VIT, "pretrained": False, "classes": tuple("abcde"), "image_size": 64, **changes}
    return ModelConfig.model_validate(values)


@pytest.fixture
def tiny_model() -> ToCo:
    """A tiny network with seeded weights."""
    torch.manual_seed(0)
    return ToCo(tiny_config()).eval()


@pytest.fixture(scope="session")
def _shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    assert toco_shapes([str(folder), "--images", "40", "--size", "64", "--seed", "3"]) == 0
    return folder


@pytest.fixture
def shapes(_shapes_folder: Path, tmp_path: Path) -> Path:
    """A copy of a small synthetic data set (40 images of 64 px) that a test may damage."""
    return Path(shutil.copytree(_shapes_folder, tmp_path / "shapes"))


@pytest.fixture
def untrained_run(shapes: Path, tmp_path: Path) -> Path:
    """The run folder of a tiny network with seeded weights, for the data beside it."""
    spec = TINY_VIT.model_dump()
    config = load_config(
        "demo",
        None,
        {
            "data.path": str(shapes),
            "model.backbone": spec,
            "model.image_size": 64,
            "cam.scales": [1.0],
        },
    )
    classes = open_source(config.data, seed=0).classes
    config = config.model_copy(update={"model": config.model.model_copy(update={"classes": classes})})
    torch.manual_seed(0)
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(ToCo(config.model).state_dict(), folder / "model.safetensors")
    (folder / "config.yaml").write_text(dump_yaml(config))
    return folder


@pytest.fixture(scope="module")
def _small_projection() -> Iterator[None]:
    """Build the networks of a module's tests with a small projection head, as the finished run has it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        give_a_small_projection(monkeypatch)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of 6 steps with its report, and its data: 13 training, 3 validation images."""
    folder = tmp_path_factory.mktemp("trained")
    phases = "[{from_step: 0, ptc: false, ctc: false, seg: false, reg: false}, {from_step: 2}]"
    with pytest.MonkeyPatch.context() as monkeypatch:
        give_a_small_projection(monkeypatch)
        data = small_shapes(folder / "shapes")
        classes = yaml.safe_load((data / "classes.yaml").read_text())
        (data / "classes.yaml").write_text(yaml.safe_dump(classes | {"palette": PALETTE}))
        assert train(data, folder / "run", phases=phases) == 0
    return folder
