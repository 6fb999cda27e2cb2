"""TensorBoard's event file, written in the calling thread.

torch's ``SummaryWriter`` writes from a thread of its own: a full disk then prints a traceback that cannot be caught,
and the processes that read images may be forked while a lock is held.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary


class Board:
    """A new event file in a folder.

    Args:
        folder: Where TensorBoard looks; made if it does not exist.
        start_step: The next step; TensorBoard drops what earlier files say about it and later steps.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb", buffering=0)
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=start_step, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to the curve of each name."""
        for name, value in values.items():
            self._write(Event(step=step, summary=summary.scalar(name, value)))  # type: ignore[no-untyped-call]

    def image(self, step: int, name: str, path: Path) -> None:
        """Add an image from its file."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._write(Event(step=step, summary=summary.image(name, pixels, dataformats="HWC")))  # type: ignore[no-untyped-call]

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
