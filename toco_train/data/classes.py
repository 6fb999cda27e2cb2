"""Class names and colours: the small ``classes.yaml`` of a data set, and the checks that names must pass."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator, model_validator

from toco_core.config import FrozenModel, dump_yaml, parse_config, read_yaml
from toco_core.files import write_atomic
from toco_core.palette import IGNORE_INDEX, VOC_PALETTE, UInt8Array

CLASSES_FILE = "classes.yaml"

Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]


class ClassList(FrozenModel):
    """The classes of a data set; label i is ``classes[i - 1]``."""

    classes: tuple[str, ...] = Field(min_length=1, description="Foreground class names in label order.")
    palette: tuple[Colour, ...] = Field((), description="RGB of labels 0..C, background first; default: VOC's colours.")

    @field_validator("classes")
    @classmethod
    def _names_that_can_be_told_apart(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) >= IGNORE_INDEX:
            raise ValueError(f"there are {len(classes)} classes; a mask has room for {IGNORE_INDEX - 1}")
        if not all(name.strip() for name in classes):
            raise ValueError("a class has no name")
        for name in classes:
            if not name.isascii() and name.encode(errors="replace").decode() != name:
                raise ValueError(f"the class {name!r} is not UTF-8: rename it")
        alike: dict[str, str] = {}
        for name in classes:
            other = alike.setdefault(tidy(name).casefold(), name)
            if other is not name:
                raise ValueError(f"the classes {other!r} and {name!r} differ by capitals or blanks at most: rename one")
        return classes

    @model_validator(mode="after")
    def _a_colour_for_every_label(self) -> ClassList:
        if self.palette and len(self.palette) != len(self.classes) + 1:
            raise ValueError(
                f"palette has {len(self.palette)} colours for the background and {len(self.classes)} classes: "
                f"give {len(self.classes) + 1}"
            )
        return self

    @cached_property
    def labels(self) -> dict[str, int]:
        """The label of each class, by its tidy name."""
        return {tidy(name): label for label, name in enumerate(self.classes, start=1)}

    @property
    def colours(self) -> tuple[Colour, ...]:
        """RGB of labels 0..C."""
        return self.palette or tuple((r, g, b) for r, g, b in VOC_PALETTE[: len(self.classes) + 1].tolist())

    @property
    def rgb(self) -> UInt8Array:
        """The colours as images take them, uint8 ``[C + 1, 3]``."""
        return np.array(self.colours, np.uint8)


def tidy(name: str) -> str:
    """Return a name without blanks around it, single ones within, its letters composed (as macOS does not)."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def read_classes(folder: Path) -> ClassList | None:
    """Read the ``classes.yaml`` of a data set; None where there is none.

    Raises:
        ConfigError: It is not YAML, or does not hold class names that can be told apart.
    """
    path = folder / CLASSES_FILE
    return parse_config(ClassList, read_yaml(path), str(path)) if path.is_file() else None


def found_classes(names: Iterable[str], origin: Path) -> ClassList:
    """Make the list of the classes that a data set without ``classes.yaml`` was found to have.

    Raises:
        ConfigError: There are none or too many, or two of them can hardly be told apart.
    """
    return parse_config(ClassList, {"classes": tuple(names)}, f"the class list of {origin}")


def write_classes(path: Path, classes: ClassList) -> None:
    """Write a ``classes.yaml`` with names and colours, whole or not at all."""
    write_atomic(path, dump_yaml(classes.model_copy(update={"palette": classes.colours})))
