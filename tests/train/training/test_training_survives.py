"""Training that survives: kills, full disks, and losses that are not finite."""

import errno
import json
import pkgutil
import random
import re
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

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
from toco_core.errors import ConfigError, TrainingError
from toco_train.commands.train import main
from toco_train.config import TrainConfig
from toco_train.data.classes import ClassList
from toco_train.method.objective import Losses, ToCoObjective
from toco_train.training.accelerator import require_one_gpu
from toco_train.training.nonfinite import Measurement, PendingStep, raise_if_nonfinite
from toco_train.training.run_folder import RunFolder

KILLS = 20
NAMES = ClassList(classes=("cat",))


@pytest.fixture(scope="module", autouse=True)
def _small_networks():
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_small(monkeypatch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_shapes(tmp_path_factory.mktemp("data") / "shapes")


@pytest.mark.slow
def test_a_run_that_is_killed_at_twenty_random_moments_and_resumed_gives_the_uninterrupted_run(data, tmp_path):
    flags = {"steps": 24, "evaluation__every": 8, "evaluation__max_images": 1}
    run, output, moments = tmp_path / "run", tmp_path / "run.txt", random.Random(0)
    killed_run.start(["--version"], output).join()  # the server has imported everything when this is through
    began = time.perf_counter()
    whole = killed_run.start(arguments(data, tmp_path / "whole", **flags), output)
    whole.join()
    duration = time.perf_counter() - began
    assert whole.exitcode == 0, output.read_text()

    kills = 0
    while kills < KILLS:
        process = killed_run.start(arguments(data, run, "--resume", **flags), output)
        process.join(timeout=moments.uniform(0, duration / 3))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:  # it got through: once more from the start
            assert process.exitcode == 0, output.read_text()
            assert_same_run(run, tmp_path / "whole")
            shutil.rmtree(run)
    last = killed_run.start(arguments(data, run, "--resume", **flags), output)
    last.join()
    assert last.exitcode == 0, output.read_text()
    assert_same_run(run, tmp_path / "whole")
    assert [line["step"] for line in metrics(run) if "losses" in line] == list(range(1, 25))
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """A run of 6 steps, with evaluations after 3 and 6."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(data, run) == 0
    return run


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
NO_SPACE_IN_SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
FAILURES = {  # what is written, by which function, the call from which on it fails, the checkpoint that must be left
    "network": ("toco_train.training.checkpoint.save_file", NO_SPACE_IN_SAFETENSORS, 3, 1),
    "checkpoint": ("toco_train.training.checkpoint.save_file", NO_SPACE_IN_SAFETENSORS, 4, 1),
    "its flush": ("toco_train.training.checkpoint.os.fsync", NO_SPACE, 6, 2),
    "best network": ("toco_train.training.checkpoint.save_file", NO_SPACE_IN_SAFETENSORS, 7, 3),
    "checkpoint after an evaluation": ("toco_train.training.checkpoint.save_file", NO_SPACE_IN_SAFETENSORS, 9, 3),
    "metrics": ("toco_train.training.run_folder.json.dumps", NO_SPACE, 3, 2),
    "TensorBoard": ("toco_train.training.tensorboard.Board._write", NO_SPACE, 30, 2),
    "image": ("toco_train.training.run_folder.save_grid", NO_SPACE, 1, 3),
    "log": ("toco_train.training.run_folder._LogFile.flush", NO_SPACE, 2, 3),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(
    *, what, data, uninterrupted, tmp_path, monkeypatch, capsys
):
    name, error, first, kept = FAILURES[what]
    owner, attribute = name.rsplit(".", 1)
    original, calls = getattr(pkgutil.resolve_name(owner), attribute), []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) >= first:
            raise error
        return original(*args, **kwargs)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(name, fail)
        sentence = refusal(capsys, arguments(data, run))
    assert f"cannot write in the run folder {run} (" in sentence
    assert "No space left on device" in sentence
    assert (
        f"the checkpoint of step {kept} is kept: make room, then go on with toco-train --resume --out {run}" in sentence
    )
    assert last_checkpoint(run).name == f"step_{kept:07d}.safetensors"
    assert main(["--resume", "--out", str(run)]) == 0
    assert_same_run(run, uninterrupted)


def test_a_disk_without_room_for_the_first_checkpoint_says_that_there_is_none(data, tmp_path):
    run, output = tmp_path / "run", tmp_path / "run.txt"
    process = killed_run.start(arguments(data, run), output, largest_file=50_000)
    process.join()
    assert process.exitcode == 2
    shown = output.read_text()
    assert f"cannot write in the run folder {run} (" in shown
    assert "File too large" in shown
    assert "there is no checkpoint yet: make room, or give another --out, and start again" in shown
    assert "Traceback" not in shown
    assert not (run / "model.safetensors").exists()
    assert not list(run.rglob("*.tmp*"))


class _Spoilt:
    """An objective whose loss or gradient is not finite at one step; remembers the weights as they were in it."""

    def __init__(self, monkeypatch, *, step, loss, gradient):
        self.model, self.weights, calls = None, {}, 0
        forward = ToCoObjective.forward

        def spoilt(objective, batch, phase):
            nonlocal calls
            losses, calls = forward(objective, batch, phase), calls + 1
            if calls != step:
                return losses
            self.model = objective.model
            self.weights = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
            nothing = (self.model.classifier.weight * 0).sum()
            return Losses(losses.total + (nothing.sqrt() if gradient else nothing) + loss, losses.parts)

        monkeypatch.setattr(ToCoObjective, "forward", spoilt)

    def left_the_weights_alone(self):
        """Whether what the optimiser owns is as it was (the teacher is not its own)."""
        assert self.weights
        now = dict(self.model.named_parameters())
        return all(torch.equal(now[name], was) for name, was in self.weights.items() if now[name].requires_grad)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched_and_keeps_its_images(
    *, value, data, tmp_path, monkeypatch, capsys
):
    spoilt = _Spoilt(monkeypatch, step=4, loss=value, gradient=False)
    run = tmp_path / "run"
    sentence = refusal(capsys, arguments(data, run, log_every=100, evaluation__every=100))
    assert spoilt.left_the_weights_alone()
    found = re.search(
        r"a loss is not finite at step 4 \(total (nan|inf), cls .*\), and the weights were not touched: "
        r"look at its images \(([^)]+)\) in (\S+)/nonfinite, or begin again with a lower optimizer.lr",
        sentence,
    )
    assert found, sentence
    assert found[3] == str(run)
    with safe_open(run / "nonfinite" / "step_000004.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["names"]) == found[2].split(", ")
        assert file.get_tensor("view1").shape == (4, 3, 32, 32)
        assert set(file.keys()) == {"view1", "view2", "local", "boxes", "image_labels", "seeds"}
    with Image.open(run / "nonfinite" / "step_000004.png") as image:
        image.load()
    assert last_checkpoint(run).name == "step_0000003.safetensors"


def test_only_the_micro_batch_whose_loss_is_not_finite_is_kept(data, tmp_path, monkeypatch, capsys):
    _Spoilt(monkeypatch, step=4, loss=float("nan"), gradient=False)
    refusal(capsys, arguments(data, tmp_path / "run", gradient_accumulation=2))
    assert tensors(tmp_path / "run" / "nonfinite" / "step_000002.safetensors")["view1"].shape[0] == 2


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched(data, tmp_path, monkeypatch, capsys):
    spoilt = _Spoilt(monkeypatch, step=2, loss=0.0, gradient=True)
    sentence = refusal(capsys, arguments(data, tmp_path / "run"))
    assert "the gradient is not finite at step 2 (total " in sentence
    assert spoilt.left_the_weights_alone()
    assert all(weights.isfinite().all() for weights in tensors(tmp_path / "run" / "model.safetensors").values())


def test_a_gradient_that_overflows_in_fp16_is_left_to_the_scaler_until_it_has_no_scale_left(tmp_path):
    def check(loss, scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(()))  # makes the scale
        pending = PendingStep(
            7, 0.1, Measurement(["total"], torch.tensor([loss, float("inf")])), micro_batches=[], losses=[]
        )
        raise_if_nonfinite(pending, scaler=scaler, run=RunFolder(tmp_path, is_main=False), class_list=NAMES)

    check(1.0, scale=65536.0)
    with pytest.raises(TrainingError, match="the gradient is not finite at step 7"):
        check(1.0, scale=1.0)
    with pytest.raises(TrainingError, match="a loss is not finite at step 7"):
        check(float("nan"), scale=65536.0)


@pytest.mark.parametrize(
    ("device", "processes", "accumulation", "sentence"),
    [
        ("cpu", 1, 1, "cuda_graph true needs a GPU, and the device is cpu: leave it out"),
        ("cuda", 2, 1, "cuda_graph true is for one process, got 2: leave it out"),
        ("cuda", 1, 4, "gradient_accumulation is 4: set it to 1, or leave cuda_graph out"),
    ],
)
def test_a_step_that_cannot_be_one_graph_is_refused(device, processes, accumulation, sentence):
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    with pytest.raises(ConfigError, match=sentence):
        require_one_gpu(TrainConfig(cuda_graph=True, gradient_accumulation=accumulation), accelerator)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has CUDA graphs")
def test_a_graph_without_a_gpu_is_refused_in_one_sentence(data, tmp_path, capsys):
    assert "needs a GPU" in refusal(capsys, arguments(data, tmp_path / "run", cuda_graph="true"))
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp16")
def test_fp16_without_a_gpu_is_refused_in_one_sentence(data, tmp_path, capsys):
    sentence = refusal(capsys, arguments(data, tmp_path / "run", mixed_precision="fp16"))
    assert "mixed_precision fp16 needs a GPU, and the device is cpu: use bf16 or no" in sentence
    assert not (tmp_path / "run" / "config.yaml").exists()
