"""The data that a finished run is looked at on: its own, unless another is given."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

from toco_core.errors import ConfigError, DataError
from toco_train.config import DataConfig, TrainConfig
from toco_train.data.opening import open_source
from toco_train.data.source import DataSource, log_notices


def open_run_source(
    config: TrainConfig, run: Path, data: str | None, *, no_class: str | None, group_by: str | None
) -> DataSource:
    """Open the data to look at a run on.

    Args:
        config: The run's configuration.
        run: The run folder, for complaints.
        data: Another data set than the run's own.
        no_class: As for ``DataConfig``, where it differs from the run's.
        group_by: The same.

    Raises:
        ConfigError: No data is given, and the run does not know its own.
        DataError: The data cannot be opened, or has other classes than the network.
    """
    if data is None and not config.data.path:
        raise ConfigError(f"the run {run} does not say which data it was trained on; give --data DIR")
    base = config.data if data is None else DataConfig(path=data)
    given = {name: value for name, value in {"no_class": no_class, "group_by": group_by}.items() if value is not None}
    source = open_source(base.model_copy(update=given), seed=config.seed)
    log_notices(source)
    require_classes(source, config.model.classes)
    return source


def require_classes(source: DataSource, classes: tuple[str, ...]) -> None:
    """Refuse data whose classes are not those of a network.

    Raises:
        DataError: They differ in number, name or order.
    """
    for label, (there, here) in enumerate(zip_longest(source.classes, classes), start=1):
        if there != here:
            raise DataError(
                f"{source.path} has {len(source.classes)} classes and label {label} is {there!r}, but the network was "
                f"trained on {len(classes)} and its label {label} is {here!r}; evaluate on data with the "
                "same classes in the same order"
            )
