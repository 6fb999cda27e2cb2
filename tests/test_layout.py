"""The shape of the code: small files, functions and folders, imports in one direction."""

from __future__ import annotations

import ast
import graphlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("toco_core", "toco_train", "toco_export", "toco_serve", "triton_models", "benchmarks")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_MODULES = 16

# A forbidden import in a file, and the contract that it breaks.
PLANTED = {
    "packages": ("toco_core/errors.py", "import toco_serve.errors"),
    "export-not-serve": ("toco_export/config.py", "from toco_serve.client import client"),
    "no-torch-core": ("toco_serve/client/tiling.py", "import torch"),
    "core": ("toco_core/files.py", "from toco_core import manifest"),
    "train": ("toco_train/models/vit.py", "from toco_train.commands import train"),
    "config": ("toco_train/config/schema.py", "import numpy"),
    "data": ("toco_train/data/source.py", "from toco_train.data import loader"),
    "method": ("toco_train/method/cam.py", "from toco_train.method import objective"),
    "losses": ("toco_train/method/losses/ptc.py", "from toco_train.method.losses import ctc"),
    "readers": ("toco_train/data/readers/voc.py", "from toco_train.data.readers import coco"),
    "export": ("toco_export/graph.py", "from toco_export import repository"),
    "serve": ("toco_serve/errors.py", "from toco_serve.client import client"),
    "benchmarks": ("benchmarks/harness/timing.py", "from benchmarks import inference"),
    "triton": ("triton_models/__init__.py", "import toco_core.rle"),
}


def source_files() -> Iterator[Path]:
    """Yield every Python file of the project."""
    for folder in (*PACKAGES, "tests"):
        yield from (ROOT / folder).rglob("*.py")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {name_of(file): len(file.read_text(encoding="utf-8").splitlines()) for file in source_files()}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_80_lines() -> None:
    lengths = {
        f"{name_of(file)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in source_files()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_no_folder_holds_more_than_16_modules() -> None:
    numbers = Counter(name_of(file.parent) for file in source_files() if file.name != "__init__.py")
    assert {folder: number for folder, number in numbers.items() if number > MAX_MODULES} == {}


def test_no_module_imports_itself_through_others() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 150, "the graph does not hold the project"
    graphlib.TopologicalSorter(imports).prepare()  # a CycleError names the modules


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages and their contracts."""
    tmp_path = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def lint_imports(checkout: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    chosen = [word for contract in contracts for word in ("--contract", contract)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    return subprocess.run(
        [str(program), "--no-cache", *chosen],
        cwd=checkout,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_contracts_are_kept(checkout: Path) -> None:
    linted = lint_imports(checkout)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("contract", PLANTED)
def test_a_forbidden_import_breaks_its_contract(contract: str, checkout: Path) -> None:
    name, line = PLANTED[contract]
    file = checkout / name
    text = file.read_text(encoding="utf-8")
    file.write_text(f"{text}\n{line}\n", encoding="utf-8")
    linted = lint_imports(checkout, contract)
    file.write_text(text, encoding="utf-8")
    assert linted.returncode == 1
    assert "Contracts: 0 kept, 1 broken." in linted.stdout


def test_every_contract_is_known_to_break() -> None:
    contracts = (ROOT / ".importlinter").read_text(encoding="utf-8").split("[importlinter:contract:")[1:]
    names = {contract.partition("]")[0] for contract in contracts}
    assert names == set(PLANTED)
