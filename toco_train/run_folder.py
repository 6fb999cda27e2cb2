"""The folder of a run: weights, configuration, metrics, log and sample pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from toco.config import dump_yaml
from toco.errors import RunError
from toco.files import atomic_path, write_atomic
from toco_train.config import TrainConfig
from toco_train.model import CONFIG_FILE, WEIGHTS_FILE, ToCo

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "train.log"
SAMPLES_FOLDER = "samples"


class RunFolder:
    """Writes what a run leaves behind.

    Args:
        path: The folder; made if it does not exist.
        overwrite: Whether a run that is there may be replaced.

    Raises:
        RunError: A run is there already, or the folder cannot be written.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        if not overwrite and (path / CONFIG_FILE).exists():
            raise RunError(f"{path} holds a run already; give another --out, or --overwrite to replace it")
        try:
            (path / SAMPLES_FOLDER).mkdir(parents=True, exist_ok=True)
            for name in (WEIGHTS_FILE, METRICS_FILE, LOG_FILE):
                (path / name).unlink(missing_ok=True)
            self._log = logging.FileHandler(path / LOG_FILE, encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write the run folder {path} ({error.strerror}); give another --out") from error
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("toco_train").addHandler(self._log)
        logging.getLogger("toco_train").setLevel(logging.INFO)

    def close(self) -> None:
        """Close the log."""
        logging.getLogger("toco_train").removeHandler(self._log)
        self._log.close()

    def save_config(self, config: TrainConfig) -> None:
        """Write the resolved configuration."""
        write_atomic(self.path / CONFIG_FILE, dump_yaml(config))

    def save_weights(self, model: ToCo) -> None:
        """Write the network's weights, float32, whole or not at all."""
        state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
        with atomic_path(self.path / WEIGHTS_FILE) as temporary:
            save_file(state, temporary)

    def append_metrics(self, metrics: Mapping[str, object]) -> None:
        """Add one line to ``metrics.jsonl``."""
        with (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def sample_picture(self, step: int) -> Path:
        """Return where the sample picture of a step belongs."""
        return self.path / SAMPLES_FOLDER / f"step_{step:06d}.png"
