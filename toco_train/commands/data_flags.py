"""Flags that commands share."""

from __future__ import annotations

import argparse


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Give a command the flags ``--data``, ``--no-class`` and ``--group-by``."""
    parser.add_argument("--data", metavar="DIR", help="data set; default: the one that the run was trained on")
    parser.add_argument("--no-class", metavar="NAME", help="folder or class that means that nothing is in the image")
    parser.add_argument("--group-by", metavar="REGEX", help="files with the same match are in one split")
