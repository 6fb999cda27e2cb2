"""A small network with honest margins, fitted in seconds, and what an export of it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from toco_train.config import ModelConfig, ViTSpec
from toco_train.models.toco import ToCo

PATCH, SIDE, BLOCK = 8, 64, 16
PALETTE = ((0, 0, 0), (230, 25, 75), (60, 180, 75), (0, 130, 200))
COLOURS = np.array([[128, 128, 128], [220, 40, 40], [40, 200, 40], [50, 60, 230]])
CONFIG = ModelConfig(
    backbone=ViTSpec(image_size=SIDE, patch_size=PATCH, width=64, depth=4, num_heads=4),
    pretrained=False,
    classes=("a", "b", "c"),
    image_size=SIDE,
    decoder_channels=64,
)


def colour_blocks(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy blocks of one of four colours, uint8 [B, H, W, 3], and the colour of each pixel, int64 [B, H, W]."""
    blocks = generator.integers(0, len(COLOURS), (count, SIDE // BLOCK, SIDE // BLOCK))
    labels = blocks.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)
    noise = generator.normal(0, 12, (count, SIDE, SIDE, 3))
    return np.clip(COLOURS[labels] + noise, 0, 255).astype(np.uint8), labels


def fit_to_colours(num_steps: int = 60) -> ToCo:
    """Train the small network for a moment on "the label is the colour": its classes are then not tied."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    model = ToCo(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CONFIG.mean, CONFIG.std))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: two threads on busy cores spend a minute waiting for each other
    for _ in range(num_steps):
        images, labels = colour_blocks(generator, 8)
        pixels: Tensor = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        logits = F.interpolate(model.segment(pixels), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    assert loss.item() < 0.7, f"the fixture did not learn: {loss.item()}"
    return model.eval()


@dataclass(frozen=True)
class Exported:
    """What one run of ``toco-export RUN --fp16``, which ended well, left and said."""

    repository: Path
    output: str

    @property
    def artefacts(self) -> Path:
        return self.repository / "toco" / "1"

    @property
    def report(self) -> str:
        return (self.repository / "export_report.md").read_text(encoding="utf-8")


def save_perturbed(source: Path, target: Path) -> Path:
    """Copy an ONNX file with the weights of its last convolution in another order."""
    proto = onnx.load(source)
    last = [node for node in proto.graph.node if node.op_type == "Conv"][-1]
    weights = next(tensor for tensor in proto.graph.initializer if tensor.name == last.input[1])
    weights.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(weights), 1, axis=0), weights.name))
    onnx.save(proto, target)
    return target
