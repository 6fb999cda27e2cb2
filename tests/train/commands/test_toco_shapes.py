"""The command toco-shapes: what it refuses, and what it leaves alone."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from tests.train.shapes_folder import read_ids, tree_hash
from toco_train.commands.shapes import main
from toco_train.shapes import voc
from toco_train.shapes.config import SceneConfig
from toco_train.shapes.plan import plan_objects
from toco_train.shapes.scene import make_scene
from toco_train.shapes.voc import Recipe, make_dataset


def run(capsys, *argv: object) -> tuple[int, str, str]:
    status = main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.splitlines()[-1] if captured.err else ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", 9], "--images is 9, too few for two splits: give at least 10"),
        (["--size", 16], "--size is 16, expected a multiple of 16 from 32 up: try 32"),
        (["--size", 100], "--size is 100, expected a multiple of 16 from 32 up: try 96"),
        (["--seed", -1], "--seed is -1, expected 0 or more"),
        (["--workers", 0], "--workers is 0, expected 1 or more"),
        (["--seed", -1, "--workers", 0], "--seed is -1, expected 0 or more; --workers is 0, expected 1 or more"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_in_one_sentence(tmp_path, capsys, flags, message):
    assert run(capsys, tmp_path / "out", *flags) == (2, "", f"toco-shapes: error: {message}")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    out.write_text("mine")
    status, _, error = run(capsys, out)
    assert (status, out.read_text()) == (2, "mine")
    assert error == f"toco-shapes: error: {out} is a file, expected a new or empty folder: give another path"


def test_a_folder_with_other_content_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    status, _, error = run(capsys, tmp_path)
    assert status == 2
    assert error == (
        f"toco-shapes: error: {tmp_path} is not empty: it holds something that toco-shapes did not make; "
        "give another folder or remove this one"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    status, _, error = run(capsys, out, "--images", 10, "--size", 32)
    assert status == 2
    assert error.startswith(f"toco-shapes: error: cannot write {out}: ")
    assert error.endswith("; give a folder that can be created and written to")


def test_a_second_run_with_the_same_arguments_finds_the_data_set_there(tmp_path, capsys):
    arguments = (tmp_path / "out", "--images", 10, "--size", 32)
    assert run(capsys, *arguments)[:2] == (
        0, f"{tmp_path}/out: 8 training and 2 validation images; look at contact_sheet.png\n"
    )  # fmt: skip
    before = tree_hash(tmp_path)
    assert run(capsys, *arguments) == (0, f"{tmp_path}/out already holds this data set: nothing to do\n", "")
    assert tree_hash(tmp_path) == before


def test_a_data_set_made_with_other_arguments_is_refused_and_named(tmp_path, capsys):
    out = tmp_path / "out"
    make_dataset(out, Recipe(images=10, size=32, seed=1))
    status, _, error = run(capsys, out, "--images", 10, "--size", 48, "--seed", 0)
    assert status == 2
    assert "it holds a data set made with size 32, not 48 and seed 1, not 0; give another folder" in error


def test_a_data_set_made_with_other_scene_settings_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    make_dataset(out, Recipe(images=10, size=32, seed=0, scene=SceneConfig(noise=0)))
    status, _, error = run(capsys, out, "--images", 10, "--size", 32)
    assert status == 2
    assert "it holds a data set made with other scene settings; give another folder" in error
    assert json.loads((out / "shapes.json").read_text())["scene"]["noise"] == 0


def test_an_empty_folder_is_filled(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert run(capsys, tmp_path / "out", "--images", 10, "--size", 32)[0] == 0
    assert len(read_ids(tmp_path / "out", "trainval")) == 10


def test_a_run_that_fails_midway_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    def fail_at_the_sixth(seed, index, size, config):
        if index == 5:
            raise OSError(28, "No space left on device")
        return make_scene(seed, index, size, config)

    monkeypatch.setattr(voc, "make_scene", fail_at_the_sixth)
    status, _, error = run(capsys, tmp_path / "out", "--images", 10, "--size", 32)
    assert status == 2
    assert "No space left on device" in error
    assert list(tmp_path.iterdir()) == []


def test_a_range_that_runs_backwards_is_refused():
    with pytest.raises(ValidationError, match=r"object_scale is \(0.6, 0.3\), expected the smaller value first"):
        SceneConfig(object_scale=(0.6, 0.3))


def test_objects_with_nothing_to_tell_their_class_are_refused():
    with pytest.raises(ValidationError, match="add up to more than 1: some objects would have nothing to tell their"):
        SceneConfig(common_tint_probability=0.6, hidden_part_probability=0.5)


def test_a_further_object_without_room_is_left_out_but_the_first_always_stays():
    crowded = SceneConfig(object_count_weights=(0, 0, 1), object_scale=(0.9, 0.9), min_visible=1)
    plans, _ = plan_objects(np.random.default_rng(0), first_label=2, size=32, config=crowded)
    assert [plan.label for plan in plans] == [2]
