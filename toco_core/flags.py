"""Command-line flags from a settings schema (a pydantic model): grouped, with type, range and default.

Our own instead of the command line of pydantic-settings, which shows no ranges, reads JSON instead of YAML, accepts one
spelling of a flag, suggests nothing for an unknown one, and returns all settings instead of those that were given.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from toco_core.errors import ConfigError

_BOOLEANS = ("true", "false", "yes", "no", "on", "off", "True", "False")  # as YAML reads them
_METAVARS: Mapping[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "true|false"}


def add_setting(
    container: argparse._ActionsContainer,
    schema: type[BaseModel],
    name: str,
    *flags: str,
    default: str | None = None,
    help: str | None = None,  # noqa: A002  (as in argparse)
) -> None:
    """Give a command one flag of a schema.

    The value's name in the help is the field's ``title``, or its type. ``given_settings`` reads it back.

    Args:
        container: A parser or a group of one.
        schema: The settings.
        name: Dotted name of a field.
        flags: What the flag is called, with dashes; by default the field's name.
        default: The default in words, where it is not the field's.
        help: The meaning, where it is not the field's description.
    """
    field = dict(_fields(schema))[name]
    facts = [*_bounds(field), *([f"default: {default}"] if default else _default(field))]
    text = (help or field.description or "").removesuffix(".")
    text = text if text[:2].isupper() else text[:1].lower() + text[1:]  # as argparse writes its own
    meaning = f"{text} ({', '.join(facts)})" if facts else text
    container.add_argument(
        *(flags or (f"--{name.replace('_', '-')}",)),
        dest=name,
        default=argparse.SUPPRESS,
        help=meaning.replace("%", "%%"),
        **_shape(field),
    )


def add_settings(parser: argparse.ArgumentParser, schema: type[BaseModel], title: str) -> None:
    """Give a command a flag for each setting of a schema that has none yet; one group for each model in it.

    Args:
        parser: The command's parser.
        schema: The settings.
        title: Title of the group of the schema's own fields; the others are called after their models.
    """
    taken = {action.dest for action in parser._actions}
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, _ in _fields(schema):
        owner = name.rpartition(".")[0]
        if name not in taken:
            if owner not in groups:
                groups[owner] = parser.add_argument_group(_group_title(schema, owner) if owner else title)
            add_setting(groups[owner], schema, name)


def given_settings(arguments: argparse.Namespace, schema: type[BaseModel]) -> dict[str, Any]:
    """Return the settings that were given on a command line, by dotted name, for ``parse_config`` to check.

    Raises:
        ConfigError: A value is not YAML, where YAML is expected.
    """
    texts = vars(arguments)
    return {
        name: _value(name, texts[name], field.annotation)
        for name, field in _fields(schema)
        if texts.get(name) is not None
    }


def _fields(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name of each setting and its field."""
    for name, field in schema.model_fields.items():
        if _is_model(field.annotation):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _group_title(schema: type[BaseModel], owner: str) -> str:
    """Return the name of a model in a schema and the first line of its docstring."""
    for name in owner.split("."):
        schema = schema.model_fields[name].annotation  # type: ignore[assignment]  # a model, as _fields found it
    return f"{owner}: {inspect.getdoc(schema).splitlines()[0].rstrip('.')}"  # type: ignore[union-attr]  # all have one


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """Return the types that a value may have, ``None`` left out."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for kind in get_args(annotation) if kind is not NoneType)
    return (annotation,)


def _element(annotation: Any) -> Any:
    """Return the type of a tuple's elements; None for what is no tuple."""
    (kind, *others) = _kinds(annotation)
    return get_args(kind)[0] if get_origin(kind) is tuple and not others else None


def _shape(field: FieldInfo) -> dict[str, Any]:
    """Say to argparse how many words a flag takes, which, and what they are called."""
    element = _element(field.annotation)
    (kind, *others) = _kinds(field.annotation if element is None else element)
    while hasattr(kind, "__metadata__"):  # Annotated[float, ...]
        kind = get_args(kind)[0]
    shape: dict[str, Any] = {} if element is None else {"nargs": "+"}
    if get_origin(kind) is Literal:
        return shape | {"choices": get_args(kind)}
    if kind is bool and element is None:
        shape = {"nargs": "?", "const": "true", "choices": _BOOLEANS}
    return shape | {"metavar": field.title or ("YAML" if others else _METAVARS.get(kind, "YAML"))}


def _bounds(field: FieldInfo) -> list[str]:
    """Say which numbers a setting takes."""
    bounds = {name: f"{getattr(rule, name):g}" for rule in field.metadata for name in ("ge", "gt", "le", "lt")
              if getattr(rule, name, None) is not None}  # fmt: skip
    if "ge" in bounds and "le" in bounds:
        return [f"{bounds['ge']} to {bounds['le']}"]
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return [f"{words[name]} {number}" for name, number in bounds.items()]


def _default(field: FieldInfo) -> list[str]:
    """Say what a setting is where it is not given."""
    return [] if field.is_required() or field.default in (None, "", ()) else [f"default: {_shown(field.default)}"]


def _shown(value: Any) -> str:
    """Write a value as it is given on a command line."""
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    if isinstance(value, BaseModel):
        return yaml.safe_dump(
            value.model_dump(exclude_unset=True), default_flow_style=True, sort_keys=False, width=10_000
        ).strip()
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, given: str | list[str], annotation: Any) -> Any:
    """Read what was given for a setting."""
    if isinstance(given, str):
        return _scalar(name, given, annotation)
    if len(given) == 1 and given[0].lstrip().startswith("["):
        return _yaml(name, given[0])
    return [_scalar(name, text, _element(annotation)) for text in given]


def _scalar(name: str, text: str, annotation: Any) -> Any:
    """Read one word: as it is where text is expected (or a model may have a short form), else as YAML."""
    kinds = _kinds(annotation)
    if text == "null" and NoneType in get_args(annotation):
        return None
    if all(kind in (str, Path) or get_origin(kind) is Literal for kind in kinds):
        return text
    short = any(kind is str or _is_model(kind) for kind in kinds) and not text.lstrip().startswith("{")
    return text if short else _yaml(name, text)


def _yaml(name: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{name.replace('_', '-')} {text!r} is not a value in YAML") from error
    if isinstance(value, str):  # YAML 1.1 takes 1e-4 for a word
        try:
            return float(value)
        except ValueError:
            pass
    return value
