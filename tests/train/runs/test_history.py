import math

import pytest

from toco_core.errors import RunError
from toco_train.config import TrainConfig
from toco_train.runs.history import History, read_history, thinned


def line(step, seconds=0.0, lr=0.0, **losses):
    return {"step": step, "seconds": seconds, "lr": lr, "losses": losses}


def test_the_time_of_each_phase_is_worked_out_without_evaluations():
    config = TrainConfig.model_validate({
        "steps": 100, "weights": {"ctc": 0},
        "phases": [{"from_step": 0, "ptc": False, "seg": False, "reg": False}, {"from_step": 15}, {"from_step": 90}],
    })  # fmt: skip
    steps = (line(10, 20.0), line(20, 70.0), line(40, 130.0))
    evaluations = ({"step": 20, "evaluation_s": 40.0}, {"step": 40, "evaluation_s": 9.0})
    first, second = History(steps, evaluations).spans(config)
    # step 15 lies half-way between 20 s and 70 s; the evaluation after step 40 is in no step's time
    assert (first.first, first.last, first.losses, first.seconds) == (1, 15, ("cls", "aux_cls"), 45.0)
    assert (second.first, second.last, second.losses) == (16, 40, ("cls", "aux_cls", "ptc", "seg", "reg"))
    assert second.seconds == pytest.approx(130 - 45 - 40)
    unknown = History(steps, ({"step": 20},)).spans(config)
    assert unknown[0].seconds == 45.0
    assert math.isnan(unknown[1].seconds)
    assert History((), ()).spans(config) == []


def test_losses_have_a_point_where_they_were_on():
    history = History((line(1, cls=3.0), line(2, cls=2.0, ptc=0.5)), ())
    assert history.losses() == {"cls": ([1, 2], [3.0, 2.0]), "ptc": ([2], [0.5])}


def test_a_long_curve_is_thinned_to_means_of_neighbours():
    assert thinned([1, 2, 3, 4, 5], [0.0, 2.0, 4.0, 6.0, 9.0], most=3) == ([1.5, 3.5, 5.0], [1.0, 5.0, 9.0])
    assert thinned([1, 2], [3.0, 4.0]) == ([1.0, 2.0], [3.0, 4.0])


def test_metrics_that_are_being_written_are_read_to_the_last_whole_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_history(path) == History((), ())
    path.write_text('{"step": 1}\n{"step": 2, "evaluation": {}}\n{"step": 3')
    assert read_history(path) == History(({"step": 1},), ({"step": 2, "evaluation": {}},))
    path.write_text('{"step": 1}\n{"step"\n')
    with pytest.raises(RunError, match=r"line 2 of .*metrics\.jsonl is not JSON"):
        read_history(path)
