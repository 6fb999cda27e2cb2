"""What all commands have in common."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import toco_core

POINTS = {point.name: point for point in entry_points(group="console_scripts") if point.value.startswith("toco_")}
COMMANDS = sorted(POINTS)
HEAVY = {
    "accelerate", "grpc", "matplotlib", "onnx", "onnxruntime", "onnxscript", "openvino", "pycocotools", "pytriton",
    "tensorboard", "tensorrt", "tensorrt_rtx", "timm", "torch", "torchmetrics", "torchvision", "tritonclient",
}  # fmt: skip


def outcome(name, argv, capsys):
    """Run a command; return its exit status and what it printed."""
    capsys.readouterr()
    try:
        status = POINTS[name].load()(argv)
    except SystemExit as error:
        status = error.code
    return status, capsys.readouterr()


def imported_by(code):
    """Return the modules that are imported in a new process after some code."""
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_these_are_the_commands():
    assert COMMANDS == [
        "toco-analyze", "toco-data", "toco-eval", "toco-export", "toco-import", "toco-label", "toco-predict",
        "toco-report", "toco-serve", "toco-shapes", "toco-train",
    ]  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    status, shown = outcome(name, ["--help"], capsys)
    assert status == 0
    assert shown.out.startswith(f"usage: {name}")
    assert "show this help message" in shown.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_version(name, capsys):
    status, shown = outcome(name, ["--version"], capsys)
    assert (status, shown.out) == (0, f"{name} {toco_core.__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_the_flag_that_is_nearest_to_an_unknown_one(name, capsys):
    status, shown = outcome(name, ["--verison"], capsys)
    assert status == 2
    assert shown.err == (f"{name}: error: unknown argument '--verison', did you mean '--version'?; see {name} --help\n")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("toco-analyze x --split vall", "argument --split: unknown value 'vall', did you mean 'val'?"),
        ("toco-data chek x", "argument COMMAND: unknown value 'chek', did you mean 'check'?"),
        ("toco-eval x --split vall", "argument --split: unknown value 'vall', did you mean 'val'?"),
        ("toco-export x --precision fp32 fp61", "argument --precision: unknown value 'fp61', did you mean 'fp16'?"),
        ("toco-label x y z --refine parr", "argument --refine: unknown value 'parr', did you mean 'par'?"),
        ("toco-predict x --out y --answer-format pngg", "unknown value 'pngg', did you mean 'png'?"),
        ("toco-serve --docker=cpuu", "argument --docker: unknown value 'cpuu', did you mean 'cpu'?"),
        ("toco-train --mixed_precision bf61", "--mixed-precision: unknown value 'bf61', did you mean 'bf16'?"),
        ("toco-train --data x --out y --preset voc-vitb", "unknown preset 'voc-vitb', did you mean 'voc-vit-b'?"),
        ("toco-train --data x --out y --lr 1", "unknown argument '--lr', did you mean '--optimizer.lr'?"),
        ("toco-train --every 1", "unknown argument '--every', did you mean '--evaluation.every' or"),
        ("toco-data check x --val-fractoin 0.3", "'--val-fractoin', did you mean '--val-fraction'?"),
        ("toco-serve status --jsn", "unknown argument '--jsn', did you mean '--json'?"),
        ("toco-shapes x extra", "unexpected argument 'extra'"),
    ],
)
def test_a_mistake_is_one_line_with_what_was_meant_and_status_2(command, sentence, capsys):
    name, *argv = command.split()
    status, shown = outcome(name, argv, capsys)
    assert status == 2
    (line,) = shown.err.splitlines()
    assert line.startswith(f"{name}")
    assert sentence in line


@pytest.mark.parametrize("name", COMMANDS)
def test_help_version_and_mistakes_do_not_wait_for_torch(name):
    module, _, function = POINTS[name].value.partition(":")
    modules = imported_by(
        f"from {module} import {function}\n"
        "for flag in ('--help', '--version', '--no-such-flag'):\n"
        "    try:\n"
        f"        {function}([flag])\n"
        "    except SystemExit:\n"
        "        pass"
    )
    assert modules & HEAVY == set()
    assert "toco_core" in modules


def test_the_client_is_imported_without_torch_grpc_and_configuration():
    modules = imported_by("from toco_serve import Client")
    assert modules & (HEAVY | {"pydantic", "rich", "yaml"}) == set()
    assert {"toco_serve", "numpy"} <= modules
