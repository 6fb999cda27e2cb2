"""Runs that are stopped and resumed: what comes out is what comes out of a run that was not."""

import json
import os
import shutil
import signal
import socket
import time

import pytest
import yaml
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.train import killed_run
from tests.train.small_runs import (
    arguments,
    assert_same_run,
    last_checkpoint,
    make_small,
    metrics,
    refusal,
    small_shapes,
    tensors,
    train,
)
from toco_train.commands.display import TrainingDisplay
from toco_train.commands.train import main
from toco_train.training import validation
from toco_train.training.checkpoint import write_tensors


@pytest.fixture(scope="module", autouse=True)
def _small_networks():
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_small(monkeypatch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_shapes(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """A run of 6 steps, with evaluations after 3 and 6."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(data, run) == 0
    return run


def signal_at(monkeypatch, method, number, *, when, times=1):
    """Send this process a signal from within a method of the display, the first time that its arguments fit."""
    original, left = getattr(TrainingDisplay, method), [times]

    def call(self, *args):
        if left[0] and when(*args):
            left[0] = 0
            for _ in range(times):
                os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(TrainingDisplay, method, call)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_a_signal_saves_after_its_step_and_resume_gives_the_uninterrupted_run(
    *, number, workers, data, uninterrupted, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, "stepped", number, when=lambda step, _: step == 2)
        assert train(data, run, data__num_workers=workers) == 0
    assert f"stopped at step 2 of 6, and saved; go on with: toco-train --resume --out {run}" in capsys.readouterr().out
    assert [line["step"] for line in metrics(run)] == [1, 2]
    assert main(["--resume", "--out", str(run)]) == 0
    assert "going on from the checkpoint of step 2" in capsys.readouterr().out
    assert_same_run(run, uninterrupted)


def test_a_signal_between_checkpoints_saves_the_step_that_is_done(data, uninterrupted, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, "stepped", signal.SIGTERM, when=lambda step, _: step == 4)  # heard of during step 5
        assert train(data, run, checkpoint__every=100) == 0
    assert last_checkpoint(run).name == "step_0000005.safetensors"
    assert main(["--resume", "--out", str(run)]) == 0
    assert_same_run(run, uninterrupted)


@pytest.mark.parametrize("step", [3, 6])
def test_an_evaluation_that_was_stopped_is_done_again(*, step, data, uninterrupted, tmp_path, monkeypatch, capsys):
    run, seen = tmp_path / "run", []
    with monkeypatch.context() as patch:
        signal_at(
            patch, "evaluating", signal.SIGINT, when=lambda done, total: seen.append(done) or len(seen) == step - 2
        )
        assert train(data, run) == 0
    assert len(seen) == step - 2, "the evaluation ends with the image at which the signal came"
    assert f"stopped at step {step} of 6" in capsys.readouterr().out
    assert not [line for line in metrics(run) if line["step"] == step and "evaluation" in line]
    assert main(["--resume", "--out", str(run)]) == 0
    assert_same_run(run, uninterrupted)


def test_a_second_ctrl_c_quits_at_once(data, tmp_path, monkeypatch, capsys):
    signal_at(monkeypatch, "stepped", signal.SIGINT, when=lambda step, _: step == 2, times=2)
    assert train(data, tmp_path / "run") == 130
    assert capsys.readouterr().err == "toco-train: error: interrupted\n"
    assert last_checkpoint(tmp_path / "run").name == "step_0000001.safetensors"


def test_gradient_accumulation_is_resumed_too(data, tmp_path, monkeypatch):
    assert train(data, tmp_path / "whole", gradient_accumulation=2) == 0
    with monkeypatch.context() as patch:
        signal_at(patch, "stepped", signal.SIGINT, when=lambda step, _: step == 4)
        assert train(data, tmp_path / "run", gradient_accumulation=2) == 0
    assert main(["--resume", "--out", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(uninterrupted, tmp_path, capsys):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    assert main(["--resume", "--out", str(run)]) == 0
    assert "going on from the checkpoint of step 6" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*.safetensors")} == before
    assert metrics(run) == metrics(uninterrupted)


def test_resume_begins_a_run_where_there_is_none_and_begins_anew_before_the_first_checkpoint(
    data, uninterrupted, tmp_path
):
    run = tmp_path / "run"
    assert train(data, run, "--resume") == 0
    assert_same_run(run, uninterrupted)
    last_checkpoint(run).unlink()
    assert main(["--resume", "--out", str(run)]) == 0
    assert_same_run(run, uninterrupted)


def test_what_a_kill_leaves_behind_is_taken_back(data, uninterrupted, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, "stepped", signal.SIGINT, when=lambda step, _: step == 2)
        assert train(data, run) == 0
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "losses": {"total": 1.0}}\n{"step": 4, "lo')
    left = [run / "checkpoints" / ".step_0000003.safetensors.x1.safetensors", run / "checkpoints" / ".tmpAbC123",
            run / ".model.safetensors.y2.safetensors"]  # fmt: skip
    for path in left:
        path.write_bytes(b"half")
    assert main(["--resume", "--out", str(run)]) == 0
    assert not [path for path in left if path.exists()]
    assert_same_run(run, uninterrupted)


def test_the_same_command_line_with_resume_goes_on_and_another_setting_is_refused(
    data, uninterrupted, tmp_path, capsys
):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    assert train(data, run, "--resume") == 0
    sentence = refusal(capsys, arguments(data, run, "--resume", steps=9, optimizer__lr=0.5))
    assert "steps 9 (the run has 6), optimizer.lr 0.5 (the run has 0.001): leave them out, or start anew" in sentence
    assert yaml.safe_load((run / "config.yaml").read_text())["steps"] == 6
    assert metrics(run) == metrics(uninterrupted)


def test_the_data_may_move_but_not_change(data, uninterrupted, tmp_path, monkeypatch, capsys):
    run, moved = tmp_path / "run", shutil.copytree(data, tmp_path / "moved")
    with monkeypatch.context() as patch:
        signal_at(patch, "stepped", signal.SIGINT, when=lambda step, _: step == 2)
        assert train(data, run) == 0
    assert main(["--resume", "--out", str(run), "--data", str(moved), "--data.num_workers", "1"]) == 0
    assert_same_run(run, uninterrupted)
    annotation = next(path for path in (moved / "Annotations").iterdir() if "<name>crab</name>" in path.read_text())
    annotation.write_text(annotation.read_text().replace("<name>crab</name>", "<name>gift</name>"))
    assert "are not those that the run began with" in refusal(capsys, ["--resume", "--out", str(run)])


def test_resume_with_nothing_to_go_on_with_is_refused_in_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--resume", "--out", str(tmp_path / "absent")])
    assert caught.value.code == 2
    assert "--resume finds no run in" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()


def test_overwriting_leaves_nothing_of_the_run_that_was_there(data, uninterrupted, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    assert train(data, run, "--overwrite", steps=2, evaluation__every=2, checkpoint__every=2) == 0
    assert last_checkpoint(run).name == "step_0000002.safetensors"
    assert [path.name for path in (run / "samples").iterdir()] == ["step_000002.png"]
    assert [line["step"] for line in metrics(run)] == [1, 2, 2]
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_as_many_checkpoints_are_kept_as_asked_for(data, tmp_path):
    assert train(data, tmp_path / "run", steps=4, checkpoint__keep=2) == 0
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_0000003.safetensors", "step_0000004.safetensors"]


def test_the_best_network_is_that_of_the_evaluation_with_the_highest_segmentation_miou(
    data, tmp_path, monkeypatch, capsys
):
    evaluate, scores = validation.evaluate, iter([0.2, 0.6, 0.4, 0.3])

    def scored(*args, **kwargs):
        evaluation = evaluate(*args, **kwargs)
        object.__setattr__(evaluation.seg, "mean_iou", next(scores))
        return evaluation

    monkeypatch.setattr(validation, "evaluate", scored)
    run = tmp_path / "run"
    assert train(data, run, steps=3, evaluation__every=1, checkpoint__keep=9) == 0
    of_step_2 = tensors(run / "checkpoints" / "step_0000002.safetensors")
    best = tensors(run / "best" / "model.safetensors")
    assert all((best[name] == of_step_2[f"model.{name}"]).all() for name in best)
    assert f"0.600 at step 2, kept as the run {run}/best" in capsys.readouterr().out


def test_a_run_says_which_sizes_its_scores_are_of_and_one_that_does_not_is_resumed(data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, "stepped", signal.SIGINT, when=lambda step, _: step == 2)
        assert train(data, run, model__sizes="[[64, 64]]") == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    sizes = config["model"].pop("sizes")
    assert sizes == [[8, 32], [16, 32], [24, 32], [32, 8], [32, 16], [32, 24], [32, 32]]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    checkpoint = last_checkpoint(run)
    with safe_open(checkpoint, framework="pt") as file:
        ((key, state),) = file.metadata().items()
    numbers = json.loads(state)
    del numbers["config"]["model"]["sizes"]
    write_tensors(checkpoint, tensors(checkpoint), {key: json.dumps(numbers)})
    assert main(["--resume", "--out", str(run)]) == 0
    for folder in (run, run / "best"):
        assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["sizes"] == sizes


def test_tensorboard_shows_every_step_once(data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, "stepped", signal.SIGINT, when=lambda step, _: step == 4)
        assert train(data, run, checkpoint__every=100, evaluation__every=100) == 0
    shutil.copytree(run, tmp_path / "copy")
    assert main(["--resume", "--out", str(run)]) == 0
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    points = board.Scalars("losses/total")
    assert [point.step for point in points] == [1, 2, 3, 4, 5, 6]
    logged = [line["losses"]["total"] for line in metrics(run) if "losses" in line]
    assert [point.value for point in points] == pytest.approx(logged, rel=1e-6)
    assert {"evaluation/seg/mean_iou", "gradient_norm", "lr"} <= set(board.Tags()["scalars"])
    assert board.Tags()["images"] == ["samples"]


def test_the_configuration_of_a_run_begins_the_same_run_again(data, uninterrupted, tmp_path):
    config = str(uninterrupted / "config.yaml")
    assert main(["--config", config, "--data", str(data), "--out", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def start_two(argv, folder):
    """Start two processes that train together, as torchrun does; return them and the files of what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common["OMP_NUM_THREADS"] = "1"  # torchrun sets it, too
    outputs = [folder / "first.txt", folder / "second.txt"]
    processes = [
        killed_run.start(argv, output, environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, output in enumerate(outputs)
    ]
    return processes, outputs


def finish(processes, outputs):
    for process, output in zip(processes, outputs, strict=True):
        process.join()
        assert process.exitcode == 0, output.read_text()


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_when_one_is_signalled_and_resume_exactly(data, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    flags = {"steps": 12, "evaluation__every": 12}
    finish(*start_two(arguments(data, whole, **flags), tmp_path))
    processes, outputs = start_two(arguments(data, run, **flags), tmp_path)
    while not (run / "metrics.jsonl").exists() or '"step": 2' not in (run / "metrics.jsonl").read_text():
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGTERM)
    finish(processes, outputs)
    step = int(last_checkpoint(run).stem.removeprefix("step_"))
    assert 2 <= step < 12
    assert f"stopped at step {step} of 12" in outputs[0].read_text()
    assert "stopped" not in outputs[1].read_text(), "the first process speaks for all"
    finish(*start_two(["--resume", "--out", str(run)], tmp_path))
    assert_same_run(run, whole)


@pytest.mark.slow
def test_of_two_processes_the_first_alone_refuses(data, tmp_path):
    processes, outputs = start_two(arguments(data, tmp_path / "run", mixed_precision="fp16"), tmp_path)
    for process in processes:
        process.join()
        assert process.exitcode == 2
    assert outputs[0].read_text().count("error: mixed_precision fp16 needs a GPU") == 1
    assert outputs[1].read_text() == ""
