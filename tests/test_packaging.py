"""What is built and installed: everything that the packages need, nothing else, under names that nothing shadows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("toco_core", "toco_train", "toco_export", "toco_serve", "triton_models")
NOT_PACKAGED = {"triton_models/README.md"}


def copy_checkout(folder: Path) -> Path:
    """Copy what a distribution is built from, and the folders that must not get into it."""
    for name in (*PACKAGES, "benchmarks", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results", "golden"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with wheel and source distribution, built from a copy of this checkout."""
    checkout = copy_checkout(tmp_path_factory.mktemp("build") / "checkout")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation"], cwd=checkout, check=True, stdout=subprocess.DEVNULL
    )
    return checkout / "dist"


@pytest.fixture(scope="module")
def installed(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the unpacked wheel and nothing else, as ``pip install --target`` leaves it."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def run_python(code: str, *, cwd: Path, installed: Path) -> str:
    """Run code in a fresh process that finds the project in the unpacked wheel; return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_wheel_holds_every_file_of_the_packages_and_no_others(installed: Path) -> None:
    expected = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    } - NOT_PACKAGED
    found = {file.relative_to(installed).as_posix() for file in installed.rglob("*") if file.is_file()}
    assert {name for name in found if ".dist-info/" not in name} == expected
    assert {"toco_train/config/presets/demo.yaml", "triton_models/toco/1/model.py", "toco_serve/py.typed"} < expected


def test_the_source_distribution_holds_the_packages_without_tests_and_benchmarks(distributions: Path) -> None:
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as source:
        folders = {Path(name).parts[1] for name in source.getnames() if len(Path(name).parts) > 2}
    assert folders == {*PACKAGES, "toco_seg.egg-info"}


def test_the_description_renders_where_packages_are_shown(distributions: Path) -> None:
    files = [str(file) for file in distributions.iterdir()]
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


def test_the_unpacked_wheel_finds_presets_and_model_code_of_its_own(installed: Path, tmp_path: Path) -> None:
    code = """
from importlib import resources
import toco_core, toco_serve
from toco_train.config.loading import preset_names
print(toco_core.__version__, *preset_names())
print(toco_serve.__file__, resources.files("triton_models") / "toco_image" / "1" / "model.py", sep="\\n")
"""
    names, *files = run_python(code, cwd=tmp_path, installed=installed).splitlines()
    assert names == "0.1.0 coco-deit-b coco-vit-b demo voc-deit-b voc-vit-b"
    assert [Path(file).relative_to(installed).parts[0] for file in files] == ["toco_serve", "triton_models"]
    assert all(Path(file).is_file() for file in files)


def test_a_checkout_in_a_folder_called_toco_shadows_nothing(installed: Path, tmp_path: Path) -> None:
    copy_checkout(tmp_path / "toco")
    code = f"import {', '.join(PACKAGES)}; print({', '.join(f'{package}.__file__' for package in PACKAGES)}, sep='\\n')"
    files = run_python(code, cwd=tmp_path, installed=installed).splitlines()
    assert [Path(file).relative_to(installed).as_posix() for file in files] == [f"{p}/__init__.py" for p in PACKAGES]
