"""What a run shows on the terminal."""

import io
import logging

import torch
from PIL import Image
from rich.console import Console

from toco_train.commands.display import TrainingDisplay
from toco_train.config import DataConfig
from toco_train.data.opening import open_source
from toco_train.data.source import log_notices
from toco_train.training.checkpoint import Progress

HEIC = "images of a kind that is not read (.heic): 1, for example car [front]/2.heic; convert them to JPEG or PNG"


def opened(path):
    for name in ("car [front]/0.jpg", "car [front]/1.jpg", "dog/0.jpg", "dog/1.jpg"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path / name)
    (path / "car [front]" / "2.heic").touch()
    return open_source(DataConfig(path=str(path)), seed=0)


def test_training_says_what_it_does_not_use_of_the_data_and_prints_names_as_they_are(tmp_path):
    screen = io.StringIO()
    with TrainingDisplay(Console(file=screen, width=200), steps=1) as display:
        display.started(opened(tmp_path), torch.device("cpu"), Progress())
    assert f"warning: {HEIC}" in screen.getvalue()
    assert "2 classes (car [front], dog)" in screen.getvalue()


def test_other_commands_warn_of_what_they_do_not_use(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        log_notices(opened(tmp_path))
    assert f"{tmp_path}: {HEIC}" in caplog.text
