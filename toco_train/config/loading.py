"""The configuration of a training run: what it holds, and how preset, file and flags make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from toco_core.config import parse_config, read_yaml
from toco_core.errors import ConfigError
from toco_core.text import nearest
from toco_train.config.schema import (
    TrainConfig,
)


def preset_names() -> list[str]:
    """Return the names of the presets, in order."""
    folder = resources.files("toco_train.config") / "presets"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_config(
    preset: str | None, file: Path | None, flags: Mapping[str, Any], *, resumed: Path | None = None
) -> TrainConfig:
    """Make a configuration: flags beat the file, the file beats the preset, the preset beats the defaults.

    Args:
        preset: Name of a preset.
        file: A YAML file with any part of a configuration.
        flags: Dotted names to values, such as ``{"optimizer.lr": 1e-4}``.
        resumed: The configuration of a run, which then stands in the place of the defaults.

    Raises:
        ConfigError: The preset is unknown, the file cannot be read, or a key or value is not valid.
    """
    values = {} if resumed is None else read_yaml(resumed)
    if preset is not None:
        if preset not in preset_names():
            known = preset_names()
            raise ConfigError(f"unknown preset {preset!r}{nearest(preset, known)}; the presets are {', '.join(known)}")
        with resources.as_file(resources.files("toco_train.config") / "presets" / f"{preset}.yaml") as path:
            _merge(values, read_yaml(path))
    if file is not None:
        _merge(values, read_yaml(file))
    for name, value in flags.items():
        _merge(values, _nested(name.split("."), value))
    return parse_config(TrainConfig, values, "the configuration")


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nested(path[1:], value) if path[1:] else value}


def _merge(base: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Lay one tree of values over another, in place."""
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
