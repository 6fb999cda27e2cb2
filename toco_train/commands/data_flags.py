"""Flags that several commands share."""

from __future__ import annotations

from toco_core.cli import CommandParser
from toco_core.flags import add_setting
from toco_train.config import DataConfig


def add_data_flags(parser: CommandParser) -> None:
    """Give a command that uses a run the flags ``--data``, ``--no-class`` and ``--group-by`` of ``DataConfig``."""
    data = "data set to use, if not the one that the run was trained on"
    add_setting(parser, DataConfig, "path", "--data", help=data)
    add_setting(parser, DataConfig, "no_class")
    add_setting(parser, DataConfig, "group_by")
