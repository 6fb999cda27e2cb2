"""Flags from a settings schema: what they are called, what the help says of them, and how values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from toco_core.cli import CommandParser
from toco_core.config import FrozenModel, parse_config
from toco_core.errors import ConfigError
from toco_core.flags import add_setting, add_settings, given_settings

Share = Annotated[float, Field(ge=0, le=1)]


class Spec(FrozenModel):
    """Numbers of a network."""

    width: int = 8


class Optimizer(FrozenModel):
    """How weights are updated.

    Not shown: the rest of the docstring.
    """

    head_lr_factor: float = Field(10.0, gt=0, lt=1e3, description="Factor of the rate for 50% of the heads.")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="Decay of the moments.")


class Settings(FrozenModel):
    """All settings."""

    steps: int = Field(20, ge=1, description="Optimiser steps.")
    kind: Literal["plain", "full"] = Field("full", description="Kind of run.")
    graph: bool = Field(False, description="CAM as a graph.")
    weights: Path | None = Field(None, title="FILE", description="GPU weights.")
    backbone: str | Spec = Field("vit", description="Network.")
    names: tuple[str, ...] = Field((), description="Class names.")
    phases: tuple[Spec, ...] = Field((Spec(width=2), Spec()), description="Phases.")
    seed: Share = Field(description="No default.")
    optimizer: Optimizer = Optimizer()


def parser() -> CommandParser:
    """A command with all settings and a positional argument."""
    command = CommandParser("toco-test", "For a test.")
    command.add_argument("run")
    add_setting(command, Settings, "weights", "--weights", "--own-weights", default="those of the run")
    add_settings(command, Settings, "settings")
    return command


def given(*argv: str) -> dict[str, object]:
    """Return what is read from a command line."""
    arguments = parser().parse_args(["run", *argv])
    assert arguments.run == "run"
    return given_settings(arguments, Settings)


def test_the_help_has_a_group_for_each_model_with_type_range_and_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = [" ".join(line.split()) for line in parser().format_help().splitlines()]
    shown = lines[lines.index("--weights FILE, --own-weights FILE") :]
    assert shown == [
        "--weights FILE, --own-weights FILE",
        "GPU weights (default: those of the run)",
        "",
        "settings:",
        "--steps INT optimiser steps (at least 1, default: 20)",
        "--kind {plain,full} kind of run (default: full)",
        "--graph [true|false] CAM as a graph (default: false)",
        "--backbone YAML network (default: vit)",
        "--names TEXT [TEXT ...] class names",
        "--phases YAML [YAML ...] phases (default: {width: 2} {})",
        "--seed FLOAT no default (0 to 1)",
        "",
        "optimizer: How weights are updated:",
        "--optimizer.head-lr-factor FLOAT",
        "factor of the rate for 50% of the heads (above 0, below 1000, default: 10)",
        "--optimizer.betas FLOAT [FLOAT ...]",
        "decay of the moments (default: 0.9 0.999)",
    ]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("", {}),
        ("--steps 1e3 --seed 1e-4", {"steps": 1000.0, "seed": 1e-4}),
        ("--optimizer.head-lr-factor 2", {"optimizer.head_lr_factor": 2}),
        ("--optimizer.head_lr_factor=2", {"optimizer.head_lr_factor": 2}),
        ("--steps 1 --steps 2", {"steps": 2}),
        ("--graph", {"graph": True}),
        ("--graph false", {"graph": False}),
        ("--graph=yes", {"graph": True}),
        ("--kind plain", {"kind": "plain"}),
        ("--names cat 12 null", {"names": ["cat", "12", "null"]}),
        ("--names [cat,dog]", {"names": ["cat", "dog"]}),
        ("--optimizer.betas 0.5 0.9", {"optimizer.betas": [0.5, 0.9]}),
        ("--optimizer.betas [0.5,0.9]", {"optimizer.betas": [0.5, 0.9]}),
        ("--phases {} 12", {"phases": [{}, "12"]}),
        ("--backbone 12", {"backbone": "12"}),
        ("--weights 12", {"weights": "12"}),
        ("--own_weights null", {"weights": None}),
    ],
)
def test_values_are_yaml_but_text_is_taken_as_it_is(argv: str, expected: dict[str, object]) -> None:
    assert given(*argv.split()) == expected


def test_models_are_given_as_yaml() -> None:
    assert given("--backbone", "{width: 3}", "--phases", "[{width: 1}, {}]") == {
        "backbone": {"width": 3},
        "phases": [{"width": 1}, {}],
    }


def test_a_flag_that_may_stand_alone_leaves_the_next_word_to_the_command() -> None:
    arguments = parser().parse_args(["--graph", "run"])
    assert (arguments.run, given_settings(arguments, Settings)) == ("run", {"graph": True})


def test_words_after_two_dashes_are_no_flags() -> None:
    arguments = parser().parse_args(["--steps", "2", "--", "--a_b"])
    assert (arguments.run, given_settings(arguments, Settings)) == ("--a_b", {"steps": 2})


def test_a_value_that_is_not_yaml_is_refused_with_its_flag() -> None:
    with pytest.raises(ConfigError, match=r"^--optimizer\.head-lr-factor '\[1' is not a value in YAML$"):
        given("--optimizer.head-lr-factor", "[1")


def test_a_choice_that_comes_from_a_file_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"kind: input should be 'plain' or 'full', did you mean 'plain'\? \(got"):
        parse_config(Settings, {"kind": "plane", "seed": 0}, "the file")
