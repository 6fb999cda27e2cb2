"""The base class of every configuration, and how configurations are checked, read and written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from toco_core.errors import ConfigError
from toco_core.text import nearest, one_line


class FrozenModel(BaseModel):
    """A configuration that cannot change after it was made and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse_config(kind: type[ConfigT], values: Mapping[str, Any], origin: str) -> ConfigT:
    """Validate ``values`` as a ``kind``.

    Raises:
        ConfigError: One sentence with every problem found, and for an unknown key the nearest name.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_describe(kind, problem) for problem in error.errors())
        raise ConfigError(f"{origin} is not valid: {problems}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        ConfigError: The file is missing, is not YAML, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, expected a mapping of names to values")
    return content


def dump_yaml(config: BaseModel) -> str:
    """Return a configuration as YAML that ``read_yaml`` and ``parse_config`` take back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _describe(kind: type[BaseModel], problem: Any) -> str:
    """Say in words what pydantic found at one place."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        owner = _model_at(kind, problem["loc"][:-1])
        return f"unknown key {where!r}{nearest(str(problem['loc'][-1]), owner.model_fields if owner else [])}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if problem["type"] == "literal_error":
        message += nearest(str(problem["input"]), re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    return f"{where}: {message} (got {problem['input']!r})" if where else message


def _model_at(kind: type[BaseModel], location: Iterable[str | int]) -> type[BaseModel] | None:
    """Follow a path of field names to the model class that owns its last part."""
    for name in location:
        field = kind.model_fields.get(str(name))
        annotation = field.annotation if field else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            return None
        kind = models[0]
    return kind
