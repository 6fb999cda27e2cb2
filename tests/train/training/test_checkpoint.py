"""Checkpoints as files: what is in them, and what is refused."""

import pickle
import stat

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.train.noise_source import noise_source
from toco_core.errors import RunError
from toco_train.training.checkpoint import Progress, TrainState, fingerprint

CONFIG = {"steps": 9, "data": {"path": "/here", "num_workers": 2}, "optimizer": {"betas": [0.9, 0.999]}}


def new_state(seed=0, scaler=None):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return TrainState(model, optimizer, schedule, scaler)


def train(state, steps):
    for _ in range(steps):
        state.optimizer.zero_grad()
        state.model(torch.rand(4, 3)).square().mean().backward()
        state.optimizer.step()
        state.schedule.step()
    return state


@pytest.fixture
def source(tmp_path):
    return noise_source(tmp_path, 4)


@pytest.fixture
def saved(tmp_path, source):
    """The checkpoint of a state after 3 steps."""
    path = tmp_path / "step_3.safetensors"
    train(new_state(), 3).save(path, Progress(step=3, best_miou=0.1 + 0.2), CONFIG, source)
    return path


def test_a_restored_state_goes_on_to_the_last_bit(saved, source):
    uninterrupted = train(train(new_state(), 3), 4)
    random = torch.get_rng_state()
    restored = new_state(seed=7)
    assert restored.restore(saved, CONFIG, source) == Progress(step=3, best_miou=0.1 + 0.2)
    assert [group["lr"] for group in restored.optimizer.param_groups] == [0.1 / 4, 0.2 / 4]
    train(restored, 4)
    assert torch.equal(restored.model.weight, uninterrupted.model.weight)
    assert torch.equal(restored.model.bias, uninterrupted.model.bias)
    assert torch.equal(torch.get_rng_state(), random)
    assert restored.schedule.get_last_lr() == uninterrupted.schedule.get_last_lr()
    theirs = uninterrupted.optimizer.state_dict()["state"]
    for index, state in restored.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, theirs[index][name]) for name, value in state.items())


def test_the_scale_of_fp16_is_kept(tmp_path, source):
    path, scalers = tmp_path / "c.safetensors", [torch.amp.GradScaler("cpu", init_scale=s) for s in (1024.0, 4.0)]
    for scaler in scalers:
        scaler.scale(torch.ones(()))
    new_state(scaler=scalers[0]).save(path, Progress(), CONFIG, source)
    new_state(scaler=scalers[1]).restore(path, CONFIG, source)
    assert scalers[1].get_scale() == 1024.0


def test_a_checkpoint_is_one_file_that_others_may_read(saved, tmp_path):
    assert stat.S_IMODE(saved.stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".png"] == ["step_3.safetensors"]


def test_where_the_data_lies_and_how_many_read_it_may_change_and_nothing_else(saved, source):
    new_state().restore(saved, CONFIG | {"data": {"path": "/there", "num_workers": 0}}, source)
    with pytest.raises(RunError, match=r"got optimizer.betas \[0.8, 0.999\] \(the run has \[0.9, 0.999\]\): leave"):
        new_state().restore(saved, CONFIG | {"optimizer": {"betas": [0.8, 0.999]}}, source)
    with pytest.raises(RunError, match=r"got new 1 \(the run has None\)"):
        new_state().restore(saved, CONFIG | {"new": 1}, source)


def test_other_data_is_refused(saved, source, tmp_path):
    with pytest.raises(RunError, match="are not those that the run began with"):
        new_state().restore(saved, CONFIG, noise_source(tmp_path, 5))
    assert fingerprint(source) == fingerprint(noise_source(tmp_path, 4))


class Harmful:
    """Does harm when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_a_pickle_a_half_file_and_foreign_tensors_are_refused_in_one_sentence(saved, source, tmp_path):
    whole = saved.read_bytes()
    contents = {
        "pickle": pickle.dumps(Harmful()),
        "half": whole[: len(whole) // 2],
        "header": whole[:100],
        "empty": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign")
    for name in (*contents, "foreign", "absent"):
        with pytest.raises(RunError, match=f"checkpoint {tmp_path / name} cannot be read .*: delete it, then --resume"):
            new_state().restore(tmp_path / name, CONFIG, source)


def test_a_checkpoint_of_another_network_is_refused(saved, source):
    other = new_state()
    other.model = nn.Linear(3, 3)
    with pytest.raises(RunError, match=r"does not fit this version's network: .*size mismatch for weight"):
        other.restore(saved, CONFIG, source)
