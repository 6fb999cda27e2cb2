"""The first stage: a run folder read, and all that would fail or do harm later refused."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from toco_core.config import read_yaml
from toco_core.errors import ExportError, RunError
from toco_core.fitting import Size, round_to_patches
from toco_core.manifest import MANIFEST_FILE, Precision, Profile
from toco_core.palette import IGNORE_INDEX
from toco_core.text import one_line
from toco_export.config import ExportConfig, resolve_profile
from toco_export.parity.images import data_folder, sample_images
from toco_train.data.classes import CLASSES_FILE, ClassList, Colour, read_classes
from toco_train.models.toco import ToCo
from toco_train.runs.layout import CONFIG_FILE, WEIGHTS_FILE
from toco_train.runs.load import load_run

BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # of a weight


@dataclass(frozen=True)
class Source:
    """What is exported, and what with.

    Attributes:
        run: The run folder.
        model: The network, in evaluation mode.
        palette: RGB of the labels 0..C.
        profile: The range of inputs.
        sizes: Height and width of the sizes in it that images are fitted to.
        images: Files of real images to verify with.
        calibration_images: Others to calibrate int8 with; the same if there are no others.
    """

    run: Path
    model: ToCo
    palette: tuple[Colour, ...]
    profile: Profile
    sizes: tuple[Size, ...]
    images: tuple[Path, ...]
    calibration_images: tuple[Path, ...]


def load_source(run: Path, repository: Path, config: ExportConfig) -> Source:
    """Read a run and check that it can be exported to ``repository``.

    Raises:
        RunError: The run is missing, incomplete or does not fit itself.
        ConfigError: Its ``classes.yaml`` cannot be used.
        DataError: There are no images to check with.
        ExportError: A size or the number of classes cannot be served, or the repository cannot be written.
    """
    _check_run(run)
    model = load_run(run)
    _check_served(model)
    profile, sizes = resolve_profile(config, model.patch_size, model.sizes)
    images = sample_images(config.images or data_folder(run), 2 * config.num_images)
    _check_repository(repository, model, config)
    return Source(run, model, _palette(run, model), profile, sizes, tuple(images[::2]), tuple(images[1::2] or images))


def _check_run(run: Path) -> None:
    """Say in words what a wrong checkpoint is, and which part of a run does not fit the other."""
    if run.is_file():
        raise RunError(f"{run} is a file, expected a run folder; make one of a published checkpoint with "
                       f"toco-import {run} RUN")  # fmt: skip
    weights, config = run / WEIGHTS_FILE, run / CONFIG_FILE
    if not (weights.is_file() and config.is_file()):
        return  # load_run says which is missing
    try:
        with safe_open(weights, framework="pt") as tensors:
            found = tensors.get_slice("classifier.weight").get_shape()[0]
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{weights} holds no ToCo network ({one_line(error)}); give a folder that toco-train --out wrote"
        ) from error
    model = read_yaml(config).get("model")
    named = len(model.get("classes") or ()) if isinstance(model, dict) else 0
    if named != found:
        raise RunError(f"{config} names {named} classes, but {WEIGHTS_FILE} beside it has {found}; "
                       "take both files from the same run")  # fmt: skip


def _palette(run: Path, model: ToCo) -> tuple[Colour, ...]:
    """Return the colours that the run's ``classes.yaml`` gives its labels; those of VOC without one."""
    listed = read_classes(run) or ClassList(classes=model.config.classes)
    if listed.classes != model.config.classes:
        raise RunError(f"{run / CLASSES_FILE} and {CONFIG_FILE} beside it name different classes; put the names back, "
                       f"or remove {CLASSES_FILE} to have the colours of VOC")  # fmt: skip
    return listed.colours


def _check_served(model: ToCo) -> None:
    """Refuse what the served contract cannot express."""
    image_size, patch, num_classes = model.config.image_size, model.patch_size, len(model.config.classes)
    if image_size % patch:
        raise ExportError(
            f"the run's image size {image_size} is not a multiple of the patch size {patch}; "
            f"set image_size in its config.yaml to {round_to_patches(image_size, patch)}"
        )
    if num_classes >= IGNORE_INDEX:
        raise ExportError(f"the run has {num_classes} classes; a mask is bytes and serves at most {IGNORE_INDEX - 1}")


def _check_repository(repository: Path, model: ToCo, config: ExportConfig) -> None:
    """Refuse a place that holds something else, cannot be written, or has no room."""
    if repository.exists() and not (repository / MANIFEST_FILE).is_file():
        raise ExportError(
            f"{repository} exists and is not a model repository: it has no {MANIFEST_FILE}, and would be replaced; "
            "give another folder with --repository"
        )
    parent = next(folder for folder in repository.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise ExportError(f"cannot write {repository}: {parent} is read-only or no folder; give another --repository")
    weights = sum(parameter.numel() for part in (model.backbone, model.decoder) for parameter in part.parameters())
    files = 1 if config.target == "onnx" else 2
    need = weights * (BYTES["fp32"] + sum(files * BYTES[precision] for precision in set(config.precisions)))
    free = shutil.disk_usage(parent).free
    if free < need:
        raise ExportError(f"{parent} has {free / 1e6:,.0f} MB left, and the export takes about {need / 1e6:,.0f} MB; "
                          "make room, or give another --repository")  # fmt: skip
