"""Load the network of a run."""

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


def load_run(folder: str | Path) -> ToCo:
    """Load the network of a run folder, on the CPU, in evaluation mode.

    Args:
        folder: A folder with ``model.safetensors`` and ``config.yaml`` as ``toco-train`` writes them.

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
    with torch.device("meta"):  # no random weights are drawn first: those of the file take their place
        model = ToCo(config.model_copy(update={"pretrained": False, "weights": None}))
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise RunError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it: {one_line(error)}") from error
    return model.float().eval()  # whatever type the file holds
