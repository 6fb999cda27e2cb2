"""What all commands have in common."""

from importlib.metadata import entry_points

import pytest

import toco_core

COMMANDS = sorted(point.name for point in entry_points(group="console_scripts") if point.value.startswith("toco_"))


def test_these_are_the_commands():
    assert COMMANDS == [
        "toco-analyze", "toco-data", "toco-eval", "toco-export", "toco-import", "toco-label", "toco-predict",
        "toco-report", "toco-serve", "toco-shapes", "toco-train",
    ]  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    (point,) = (point for point in entry_points(group="console_scripts") if point.name == name)
    with pytest.raises(SystemExit, match="0"):
        point.load()(["--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {name}")
    assert "show this help message" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_version(name, capsys):
    (point,) = (point for point in entry_points(group="console_scripts") if point.name == name)
    with pytest.raises(SystemExit, match="0"):
        point.load()(["--version"])
    assert capsys.readouterr().out == f"{name} {toco_core.__version__}\n"
