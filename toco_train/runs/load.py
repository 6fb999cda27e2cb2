"""Load the network of a run, on the best device."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from toco_core.config import parse_config, read_yaml
from toco_core.errors import RunError
from toco_core.text import one_line
from toco_train.config import ModelConfig
from toco_train.models.toco import ToCo
from toco_train.runs.layout import CONFIG_FILE, WEIGHTS_FILE


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_run(folder: str | Path, device: str | torch.device = "cpu") -> ToCo:
    """Load the network of a run folder in evaluation mode.

    Args:
        folder: A folder with ``model.safetensors`` and ``config.yaml`` as ``toco-train`` writes them.
        device: Where the network goes; ``"auto"``: the GPU if there is one, else the CPU.

    Raises:
        RunError: A file is missing, or the weights do not fit the configuration.
        ConfigError: ``config.yaml`` is malformed.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise RunError(
                f"{folder} is not a finished run: it has no {name}; give the folder that toco-train --out wrote"
            )
    values = read_yaml(folder / CONFIG_FILE).get("model", {})
    config = parse_config(ModelConfig, values, f"'model' in {folder / CONFIG_FILE}")
    with torch.device("meta"):  # without random weights, which those of the file would replace
        model = ToCo(config.model_copy(update={"pretrained": False, "weights": None}))
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise RunError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it: {one_line(error)}") from error
    return model.float().eval().to(best_device() if device == "auto" else device)  # float32 whatever the file holds
