"""The report of a run: its numbers by hand, the page in a browser, and what happens when it cannot be made."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.chromium import Page, needs_chromium
from tests.train.small_runs import give_a_small_projection, small_shapes, train
from toco_core.errors import RunError
from toco_train.commands.report import main
from toco_train.config import TrainConfig
from toco_train.data.masks import LabelMask
from toco_train.data.source import Sample
from toco_train.reports.gallery import choose
from toco_train.reports.history_charts import history_charts
from toco_train.runs.history import History, read_history, thinned

COLOURS = [[0, 0, 0], *([label, 255 - label, 250] for label in range(1, 7))]  # of the data's classes.yaml
IMAGES = ["image", "aux CAM", "CAM", "pseudo label", "predicted mask", "truth"]


@pytest.fixture(scope="module", autouse=True)
def _small_projection():
    with pytest.MonkeyPatch.context() as monkeypatch:
        give_a_small_projection(monkeypatch)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of 6 steps with its report, beside its data: 13 images to train on, 3 to validate."""
    folder = tmp_path_factory.mktemp("trained")
    phases = "[{from_step: 0, ptc: false, ctc: false, seg: false, reg: false}, {from_step: 2}]"
    data = small_shapes(folder / "shapes")
    classes = yaml.safe_load((data / "classes.yaml").read_text())
    (data / "classes.yaml").write_text(yaml.safe_dump(classes | {"palette": COLOURS}))
    assert train(data, folder / "run", phases=phases) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(trained / "run", tmp_path / "run")


def text_of(page):
    """Return what a reader sees of a page, but for its charts."""
    return " ".join(re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page, flags=re.DOTALL).split())


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


def _chosen(tmp_path, iou):
    """Return group and name of what is chosen of images with these IoU."""
    (tmp_path / "mask.png").touch()
    samples = [Sample(str(index), Path("x"), (), LabelMask(tmp_path / "mask.png")) for index in range(len(iou))]
    source = type("Source", (), {"val": (*samples, Sample("no mask", Path("x"), ())), "train": ()})
    return [(exhibit.group, exhibit.sample.name) for exhibit in choose(source, iou)]


def test_best_typical_and_worst_are_chosen_by_iou(tmp_path):
    chosen = _chosen(tmp_path, [0.1, 0.9, 0.5, math.nan, 0.8, 0.2, 0.6, 0.7, 0.3, 0.4, 0.55])
    assert chosen == [
        ("best", "1"), ("best", "4"), ("best", "7"),
        ("typical", "6"), ("typical", "10"), ("typical", "2"),
        ("worst", "0"), ("worst", "5"), ("worst", "8"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("iou", "expected"),
    [([0.5], [("best", "0")]), ([0.2, 0.8], [("best", "1"), ("worst", "0")]), ([math.nan], []),
     ([0.2, 0.8, 0.5], [("best", "1"), ("typical", "2"), ("worst", "0")])],
)  # fmt: skip
def test_few_images_are_shown_once_each(tmp_path, iou, expected):
    assert _chosen(tmp_path, iou) == expected


def test_the_report_that_training_leaves_says_what_the_run_was(trained):
    page = (trained / "run" / "report.html").read_text()
    shown = text_of(page)
    evaluation = [json.loads(text) for text in (trained / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    seg = evaluation["evaluation"]["seg"]
    assert evaluation["evaluation_s"] > 0
    assert f"{100 * seg['mean_iou']:.1f} % mIoU of the segmentation" in shown
    assert "13 images to train on, 3 to validate, 6 classes. 6 of 6 steps with 4 images each." in shown
    assert f"background {100 * evaluation['evaluation']['cam']['iou'][0]:.1f}" in shown
    assert "steps 1 to 2: cls, aux_cls" in shown
    assert "steps 3 to 6: cls, aux_cls, ptc, ctc, seg, reg" in shown
    assert "evaluations: 2" in shown
    assert "local_crop_size: 16" in shown
    assert "torch 2." in shown
    for name in ("total loss, weighted", "classification loss", "patch token contrast", "class token contrast",
                 "segmentation loss", "dense energy", "learning rate", "mIoU, %", "confusion of the segmentation",
                 "similarity of patch tokens by block"):  # fmt: skip
        assert page.count(f'aria-label="{name}"') == 1, name
    for group in ("Best", "Typical, around the median", "Worst, the very worst first"):
        assert f"<h3>{group}</h3>" in page
    assert re.findall(r'<img alt="([^"]*)"', page) == IMAGES * 3
    iou = [float(value) for value in re.findall(r"mIoU of this image ([\d.]+) %", shown)]
    assert len(iou) == 3
    assert iou == sorted(iou, reverse=True)


def test_the_legend_of_the_gallery_has_the_colours_of_the_data(trained):
    page = (trained / "run" / "report.html").read_text()
    colours = re.findall(r'<i style="background: rgb\((\d+), (\d+), (\d+)\)"></i>', page)
    assert len(colours) >= 2
    assert set(colours) <= {tuple(map(str, colour)) for colour in COLOURS[1:]} | {("224", "224", "192")}


def test_the_report_needs_no_network_and_names_nothing_of_this_machine(trained):
    page = (trained / "run" / "report.html").read_text()
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'(?:src)="([^"]*)"', page))
    assert not re.search(r"https?://(?!www\.w3\.org/)|<script|<link|@import|url\((?!#)", page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_report_without_complaint_or_overflow(trained, width, dark):
    path = trained / "run" / "report.html"
    with Page(path, width, dark=dark) as page:
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("window.innerWidth") == width
        sizes = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.clientWidth])")
        assert len(sizes) == 18
        assert all(natural > 0 and shown > 100 for natural, shown in sizes)
        charts = page.evaluate("[...document.querySelectorAll('svg')].map(e => [e.clientWidth, e.clientHeight])")
        assert len(charts) == 10
        assert all(shown > 200 and high > 100 for shown, high in charts)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        assert background == ("rgb(21, 24, 27)" if dark else "rgb(255, 255, 255)")
        assert ink == ("rgb(154, 164, 174)" if dark else "rgb(91, 101, 112)"), "charts have the page's colours"


def test_training_without_masks_gives_a_report_without_the_parts_about_truth(trained, tmp_path):
    data = shutil.copytree(trained / "shapes", tmp_path / "shapes")
    shutil.rmtree(data / "SegmentationClass")
    assert train(data, tmp_path / "run") == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "nothing is scored. Training needs no masks." in page
    assert re.findall(r'<img alt="([^"]*)"', page) == IMAGES[:-1] * 3
    assert "mIoU" not in text_of(page)
    assert "confusion" not in page
    assert 'aria-label="total loss, weighted"' in page


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


def test_an_evaluation_without_any_score_is_drawn_as_none():
    line = {"step": 3, "evaluation": {kind: {"mean_iou": None} for kind in ("cam", "aux_cam", "seg")}}
    (figure,) = history_charts(History((), (line,)))
    assert 'aria-label="mIoU, %"' in figure
