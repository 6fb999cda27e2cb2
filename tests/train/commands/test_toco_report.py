"""``toco-report``, and ``toco-train`` where it writes the report: when they do, and what happens when they cannot."""

import re
import shutil

import pytest

from tests.train.small_runs import train
from toco_train.commands.report import main

pytestmark = pytest.mark.usefixtures("_small_projection")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(trained / "run", tmp_path / "run")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ZeroDivisionError(), KeyboardInterrupt()])
def test_a_report_that_cannot_be_written_leaves_the_run_finished(trained, tmp_path, monkeypatch, capsys, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("toco_train.reports.run_report.write_atomic", fail)
    assert train(trained / "shapes", tmp_path / "run") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning the run is finished, but its report could not be written: " in shown
    assert f"try again with: toco-report {tmp_path / 'run'}" in shown
    assert not (tmp_path / "run" / "report.html").exists()
    monkeypatch.undo()
    assert main([str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_going_on_with_a_finished_run_leaves_its_report(trained, run, capsys):
    before = (run / "report.html").read_bytes()
    from toco_train.commands.train import main as toco_train  # noqa: PLC0415

    assert toco_train(["--resume", "--out", str(run)]) == 0
    assert (run / "report.html").read_bytes() == before
    assert "warning" not in capsys.readouterr().out


def test_the_report_on_demand_has_the_scores_of_the_one_that_training_left(run, capsys):
    parts = r"<h2>Scores.*<h2>Time"
    (before,) = re.findall(parts, (run / "report.html").read_text(), flags=re.DOTALL)
    (run / "report.html").unlink()
    assert main([str(run)]) == 0
    (after,) = re.findall(parts, (run / "report.html").read_text(), flags=re.DOTALL)
    assert after == before
    assert str(run / "report.html") in capsys.readouterr().out


def test_a_network_without_a_history_has_a_report_too(run):
    assert main([str(run / "best")]) == 0
    page = (run / "best" / "report.html").read_text()
    assert "This folder has no metrics.jsonl" in page
    assert "steps 1 to" not in page


def test_bad_input_gives_one_sentence_and_status_2(run, tmp_path, capsys):
    cases = {
        "is not a finished run: it has no config.yaml": [str(tmp_path / "absent")],
        "data folder /absent does not exist": [str(run), "--data", "/absent"],
    }
    for expected, argv in cases.items():
        capsys.readouterr()
        assert main(argv) == 2
        (sentence,) = capsys.readouterr().err.strip().splitlines()
        assert sentence.startswith("toco-report: error: ")
        assert expected in sentence
    (run / "metrics.jsonl").write_text("{\n")
    assert main([str(run)]) == 2
    assert "line 1 of" in capsys.readouterr().err


def test_a_full_disk_leaves_the_report_that_was_there(run, monkeypatch, capsys):
    before = (run / "report.html").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("toco_core.files.Path.write_bytes", full)
    assert main([str(run)]) == 2
    assert "report.html (No space left on device); make room and write it with toco-report" in capsys.readouterr().err
    assert (run / "report.html").read_bytes() == before
    assert not [path for path in run.iterdir() if path.name.startswith(".report")]
