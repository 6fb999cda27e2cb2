"""Files and folders appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toco_core import files
from toco_core.errors import ConfigError
from toco_core.files import atomic_folder, make_output_folder

KILLED_MIDWAY = """
import os, signal, sys
from pathlib import Path
from toco_core.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "new").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that was written before."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("whole")
    return path


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("exchanges", [True, False], ids=["in one step", "on a file system that cannot"])
def test_a_folder_is_replaced_whole_and_nothing_is_left_beside_it(folder, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    with atomic_folder(folder) as temporary:
        (temporary / "new").write_text("whole")
        assert contents(folder) == {"old": "whole"}
    assert contents(folder.parent) == {"folder/new": "whole"}


def test_a_block_that_raises_leaves_the_old_folder(folder):
    def write_and_be_interrupted():
        with atomic_folder(folder) as temporary:
            (temporary / "new").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_be_interrupted()
    assert contents(folder.parent) == {"folder/old": "whole"}
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(folder):
    assert subprocess.run([sys.executable, "-c", KILLED_MIDWAY, str(folder)], check=False).returncode == -9
    assert sorted(contents(folder.parent).values()) == ["half", "whole"], "the kill left something to remove"
    with atomic_folder(folder) as living:
        (living / "living").write_text("at work")
        with atomic_folder(folder) as other:
            (other / "other").write_text("quicker")
        assert contents(folder.parent) == {f"{living.name}/living": "at work", "folder/other": "quicker"}
    assert contents(folder.parent) == {"folder/living": "at work"}


def test_on_linux_the_two_folders_trade_places_in_one_step(folder, tmp_path):
    (tmp_path / "second").mkdir()
    if sys.platform == "linux":
        assert files._exchange(folder, tmp_path / "second")
        assert contents(tmp_path) == {"second/old": "whole"}


def test_an_output_folder_is_made_or_refused_in_one_sentence(tmp_path: Path) -> None:
    make_output_folder(tmp_path / "a" / "b")
    make_output_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        make_output_folder(tmp_path / "file" / "out")
    assert str(caught.value) == (f"cannot write {tmp_path}/file/out (Not a directory); make room or give another --out")
