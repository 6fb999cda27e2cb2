"""The folder of a run: configuration, weights, checkpoints, metrics, log and images."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Concatenate, ParamSpec

import torch
from safetensors import SafetensorError

from toco_core.config import dump_yaml
from toco_core.errors import RunError
from toco_core.files import write_atomic
from toco_train.config import TrainConfig
from toco_train.data.classes import CLASSES_FILE, ClassList, write_classes
from toco_train.data.loader import Batch
from toco_train.data.source import DataSource
from toco_train.inference.preview import Row, save_grid
from toco_train.models.toco import ToCo
from toco_train.runs.layout import (
    ANALYSIS_FOLDER,
    BEST_FOLDER,
    BOARD_FOLDER,
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    EVALUATION_FOLDER,
    LOG_FILE,
    METRICS_FILE,
    NONFINITE_FOLDER,
    REPORT_FILE,
    SAMPLES_FOLDER,
    WEIGHTS_FILE,
)
from toco_train.training.checkpoint import Progress, TrainState, write_tensors
from toco_train.training.tensorboard import Board

_RUN_FILES = (  # all that a run writes; the configuration first: a folder without it holds no run
    CONFIG_FILE, CLASSES_FILE, f"{CHECKPOINTS_FOLDER}/step_*.safetensors", WEIGHTS_FILE, METRICS_FILE, LOG_FILE,
    REPORT_FILE,
    f"{BEST_FOLDER}/{CONFIG_FILE}", f"{BEST_FOLDER}/{WEIGHTS_FILE}", f"{SAMPLES_FOLDER}/step_*.png",
    f"{BOARD_FOLDER}/events.out.tfevents.*", f"{NONFINITE_FOLDER}/step_*", f"{EVALUATION_FOLDER}/*",
    f"{ANALYSIS_FOLDER}/*",
)  # fmt: skip
_PARTIAL_FILES = tuple(  # names that toco_core.files and safetensors give to files that are not whole yet
    f"{folder}{name}"
    for folder in ("", f"{CHECKPOINTS_FOLDER}/", f"{BEST_FOLDER}/", f"{SAMPLES_FOLDER}/")
    for name in (".*.safetensors", ".*.yaml", ".*.png", ".*.html", ".tmp??????")
)

P = ParamSpec("P")


def _in_main_process(method: Callable[Concatenate[RunFolder, P], None]) -> Callable[Concatenate[RunFolder, P], None]:
    """Call a method in the first process only, and report in one sentence if it cannot write."""

    @functools.wraps(method)
    def write(self: RunFolder, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.is_main:
            return
        try:
            method(self, *args, **kwargs)
        except (OSError, SafetensorError) as error:
            raise self.write_error(error) from error

    return write


class RunFolder:
    """Writes the files of a run.

    ``model.safetensors`` and ``config.yaml`` are the network of the last checkpoint. ``best/`` holds the same two files
    of the evaluation with the best segmentation mIoU, so it is a run folder itself.

    Args:
        path: The folder; nothing in it is changed before ``start``.
        overwrite: Whether an existing run may be replaced.
        resume: Continue the existing run, if there is one.
        is_main: Whether this is the first of the processes that train together; the others write nothing.

    Raises:
        RunError: The folder already holds a run.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False, is_main: bool = True) -> None:
        holds_run = (path / CONFIG_FILE).exists()
        if holds_run and not (overwrite or resume):
            raise RunError(f"{path} holds a run already; give another --out, or --resume or --overwrite it")
        self.path, self.is_main = path, is_main
        self._is_this_run = holds_run and resume
        self._log: logging.FileHandler | None = None
        self._board: Board | None = None

    @_in_main_process
    def start(self, config: TrainConfig, progress: Progress, classes: ClassList) -> None:
        """Make the folder, remove files that do not belong to the run, and write its configuration and classes.

        Args:
            config: The configuration.
            progress: Where the run continues; later metrics are removed.
            classes: Names and colours of the classes.
        """
        (self.path / SAMPLES_FOLDER).mkdir(parents=True, exist_ok=True)
        for pattern in _PARTIAL_FILES if self._is_this_run else (*_RUN_FILES, *_PARTIAL_FILES):
            for file in self.path.glob(pattern):
                file.unlink()
        self._is_this_run = True
        write_atomic(self.path / CONFIG_FILE, dump_yaml(config))
        write_classes(self.path / CLASSES_FILE, classes)
        metrics = self.path / METRICS_FILE
        metrics.touch()
        os.truncate(metrics, min(progress.metrics_bytes, metrics.stat().st_size))
        self._board = Board(self.path / BOARD_FOLDER, start_step=progress.step + 1)
        self._log = _LogFile(self)
        logging.getLogger("toco_train").addHandler(self._log)
        logging.getLogger("toco_train").setLevel(logging.INFO)

    def close(self) -> None:
        """Close log and board."""
        if self._log is not None:
            logging.getLogger("toco_train").removeHandler(self._log)
            with suppress(OSError):  # a line that did not fit on the disk was reported when it was written
                self._log.close()
        if self._board is not None:
            self._board.close()

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint of the run, if there is one."""
        return max(self._checkpoints(), default=None) if self._is_this_run else None

    @_in_main_process
    def save_checkpoint(self, state: TrainState, progress: Progress, config: TrainConfig, source: DataSource) -> None:
        """Write the network and the state of training, and remove the oldest checkpoints."""
        progress = progress.model_copy(update={"metrics_bytes": (self.path / METRICS_FILE).stat().st_size})
        write_tensors(self.path / WEIGHTS_FILE, state.model.state_dict())
        path = self.path / CHECKPOINTS_FOLDER / f"step_{progress.step:07d}.safetensors"
        state.save(path, progress, config.model_dump(mode="json"), source)
        for old in sorted(self._checkpoints())[: -config.checkpoint.keep]:
            old.unlink()

    @_in_main_process
    def save_best(self, model: ToCo, config: TrainConfig) -> None:
        """Keep the network as the best so far."""
        write_atomic(self.path / BEST_FOLDER / CONFIG_FILE, dump_yaml(config))
        write_tensors(self.path / BEST_FOLDER / WEIGHTS_FILE, model.state_dict())

    @_in_main_process
    def append_metrics(self, metrics: Mapping[str, object]) -> None:
        """Append a line to ``metrics.jsonl`` and its numbers to TensorBoard; ``metrics`` must have the key ``step``."""
        with (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._board is not None:
            curves = {name: value for name, value in metrics.items() if name != "step"}
            self._board.scalars(int(str(metrics["step"])), _curves(curves))

    @_in_main_process
    def save_samples(self, step: int, rows: Sequence[Row], titles: Sequence[str], class_list: ClassList) -> None:
        """Draw predictions of the network."""
        path = self.path / SAMPLES_FOLDER / f"step_{step:06d}.png"
        save_grid(path, rows, titles, class_list, caption=f"step {step}")
        if self._board is not None:
            self._board.image(step, "samples", path)

    @property
    def nonfinite_folder(self) -> Path:
        """Where the images of a step with a non-finite loss are saved."""
        return self.path / NONFINITE_FOLDER

    def save_batches(self, step: int, process: int, batches: Sequence[Batch], class_list: ClassList) -> None:
        """Save the images of a non-finite loss of this process: their tensors, and one image to look at.

        Raises:
            RunError: They cannot be written.
        """
        stem = f"step_{step:06d}" + (f"_process_{process}" if process else "")
        names = [name for batch in batches for name in batch.names]
        columns = [name for name, value in vars(batches[0]).items() if isinstance(value, torch.Tensor)]
        tensors = {name: torch.cat([vars(batch)[name] for batch in batches]) for name in columns}
        views = ("view1", "view2", "local")
        rows = [[tensors[view][image].permute(1, 2, 0).numpy() for view in views] for image in range(len(names))]
        try:
            write_tensors(self.nonfinite_folder / f"{stem}.safetensors", tensors, {"names": json.dumps(names)})
            save_grid(self.nonfinite_folder / f"{stem}.png", rows, views, class_list, caption=f"step {step}")
        except (OSError, SafetensorError) as error:
            raise self.write_error(error) from error

    def write_error(self, error: Exception) -> RunError:
        """Return the error for a file that cannot be written."""
        reason = getattr(error, "strerror", None) or str(error)
        checkpoint = self.last_checkpoint()
        if checkpoint is None:
            remedy = "there is no checkpoint yet: make room, or give another --out, and start again"
        else:
            step = int(checkpoint.stem.removeprefix("step_"))
            remedy = (
                f"the checkpoint of step {step} is kept: make room, then go on with "
                f"toco-train --resume --out {self.path}"
            )
        return RunError(f"cannot write in the run folder {self.path} ({reason}); {remedy}")

    def _checkpoints(self) -> list[Path]:
        return list((self.path / CHECKPOINTS_FOLDER).glob("step_*.safetensors"))


class _LogFile(logging.FileHandler):
    """The log; if it cannot be written it raises an error instead of printing a traceback."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(run.path / LOG_FILE, encoding="utf-8")
        self._run = run
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise self._run.write_error(error) from error
        super().handleError(record)


def _curves(values: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Return the numbers in nested metrics by their path; per-class lists are only in ``metrics.jsonl``."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _curves(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[prefix + name] = float(value)
    return found
