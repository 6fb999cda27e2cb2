"""Runs of ``toco-train`` that take seconds: a tiny network on a few small images."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from toco_core.files import atomic_path
from toco_core.palette import UInt8Array
from toco_train.commands.shapes import main as toco_shapes
from toco_train.commands.train import main
from toco_train.models.projection import ProjectionHead

SETTINGS = {
    "model.backbone": "{image_size: 32, patch_size: 8, width: 24, depth: 3, num_heads: 2}",
    "model.image_size": "32",
    "model.decoder_channels": "8",
    "contrast.local_crop_size": "16",
    "contrast.num_local_crops": "2",
    "cam.scales": "[1.0]",
    "phases": "[{from_step: 0}]",
    "steps": "6",
    "batch_size": "4",
    "data.num_workers": "0",
    "evaluation.every": "3",
    "evaluation.max_images": "2",
    "checkpoint.every": "1",
    "log_every": "1",
}


def give_a_small_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build networks with a small projection head: the usual one is most of a tiny network."""
    small = functools.partial(ProjectionHead, hidden_dim=16, bottleneck_dim=8, out_dim=16)
    monkeypatch.setattr("toco_train.models.toco.ProjectionHead", small)


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take out what a tiny run spends most of its time on: the usual projection head, and drawing with matplotlib."""
    give_a_small_projection(monkeypatch)
    monkeypatch.setattr("toco_train.commands.train._report", lambda *_: None)
    monkeypatch.setattr("toco_train.training.run_folder.save_grid", _save_first_image)


def _save_first_image(path: Path, rows: Sequence[Sequence[UInt8Array]], *_: object, **__: object) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(rows[0][0])).save(temporary)


def small_shapes(folder: Path) -> Path:
    """Write 16 images of 64 px with masks: 13 to train on, 3 to validate."""
    assert toco_shapes([str(folder), "--images", "16", "--size", "64", "--seed", "3"]) == 0
    return folder


def arguments(data: Path, out: Path, *flags: str, **settings: object) -> list[str]:
    """Return the command line of a small run; settings are given with ``__`` for the dot."""
    values = SETTINGS | {name.replace("__", "."): str(value) for name, value in settings.items()}
    given = [word for name, value in values.items() for word in (f"--{name}", value)]
    return ["--preset", "demo", *given, "--data", str(data), "--out", str(out), *flags]


def train(data: Path, out: Path, *flags: str, **settings: object) -> int:
    """Run ``toco-train`` in this process and return its exit status."""
    return main(arguments(data, out, *flags, **settings))


def metrics(run: Path) -> list[dict[str, object]]:
    """Return the lines of ``metrics.jsonl`` without the times, which no two runs share."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "evaluation_s")} for line in lines]


def last_checkpoint(run: Path) -> Path:
    """Return the only checkpoint of a run."""
    (path,) = (run / "checkpoints").iterdir()
    return path


def tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def assert_same_run(run: Path, other: Path) -> None:
    """Check that two runs have the same weights, state of training, best network and metrics, to the last bit."""
    for name in ("model.safetensors", "best/model.safetensors", f"checkpoints/{last_checkpoint(other).name}"):
        ours, theirs = tensors(run / name), tensors(other / name)
        assert ours.keys() == theirs.keys()
        different = [key for key in ours if not torch.equal(ours[key], theirs[key])]
        assert not different, f"{name}: {different[:5]}"
    assert metrics(run) == metrics(other)


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Run a command that must fail, and return its one sentence."""
    capsys.readouterr()
    try:
        status = main(argv)
    except SystemExit as error:  # of the argument parser
        status = error.code
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("toco-train")
    return lines[0]
