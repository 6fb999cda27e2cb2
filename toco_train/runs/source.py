"""The data that a finished run is used on: its own, or other data with the same classes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from toco_core.errors import ConfigError, DataError
from toco_train.config import DataConfig, TrainConfig
from toco_train.data.opening import open_source
from toco_train.data.source import DataSource, log_notices


def open_run_source(config: TrainConfig, run: str | Path, given: Mapping[str, Any]) -> DataSource:
    """Open the data to use a run on.

    Args:
        config: The run's configuration.
        run: The run folder, for messages.
        given: Settings of ``DataConfig`` that replace the run's own. Where ``path`` is other data than the run's, the
            run's other settings do not apply to it.

    Raises:
        ConfigError: No data is given, and the run does not know its own.
        DataError: The data cannot be opened, or has other classes than the network.
    """
    path = given.get("path", config.data.path)
    if not path:
        raise ConfigError(f"the run {run} does not say which data it was trained on; give --data DIR")
    own = bool(config.data.path) and _resolved(path) == _resolved(config.data.path)
    data = config.data if own else DataConfig()
    source = open_source(data.model_copy(update={"path": path, **given}), seed=config.seed)
    log_notices(source)
    if config.model.classes:
        hint = "" if own or config.data.no_class is None else f"--no-class {config.data.no_class}"
        require_classes(source, config.model.classes, trained_with=hint)
    return source


def require_classes(source: DataSource, classes: tuple[str, ...], *, trained_with: str = "") -> None:
    """Refuse data whose classes are not those of a network.

    Args:
        source: The data.
        classes: Foreground classes of the network, in label order.
        trained_with: A flag that the network's own data was read with, for the message.

    Raises:
        DataError: They differ in number, name or order.
    """
    hint = f" (the run was trained with {trained_with})" if trained_with else ""
    for label, (there, here) in enumerate(zip_longest(source.classes, classes), start=1):
        if there != here:
            found = f"no label {label}" if there is None else f"label {label} is {there!r}"
            expected = f"has no label {label}" if here is None else f"its label {label} is {here!r}"
            raise DataError(
                f"{source.path} has {len(source.classes)} classes and {found}, but the network was trained on "
                f"{len(classes)} and {expected}; give data with the same classes in the same order{hint}"
            )


def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()
