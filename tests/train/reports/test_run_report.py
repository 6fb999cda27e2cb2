"""The HTML report of a run: what the page says, and how a browser shows it."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from tests.chromium import Page, needs_chromium
from tests.train.conftest import PALETTE
from tests.train.small_runs import train
from toco_train.config import load_config
from toco_train.data.classes import ClassList
from toco_train.data.opening import open_source
from toco_train.reports.history_charts import history_charts
from toco_train.reports.run_report import write_report
from toco_train.runs.history import History
from toco_train.runs.load import load_run

IMAGES = ["image", "aux CAM", "CAM", "pseudo label", "predicted mask", "truth"]
pytestmark = pytest.mark.usefixtures("_small_projection")


def text_of(page):
    """Return what a reader sees of a page, but for its charts."""
    return " ".join(re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page, flags=re.DOTALL).split())


def test_the_report_that_training_leaves_says_what_the_run_was(trained):
    page = (trained / "run" / "report.html").read_text()
    shown = text_of(page)
    evaluation = [json.loads(text) for text in (trained / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    seg = evaluation["evaluation"]["seg"]
    assert evaluation["evaluation_s"] > 0
    assert f"{100 * seg['mean_iou']:.1f} % mIoU of the segmentation" in shown
    assert "13 training images, 3 validation images, 6 classes. 6 of 6 steps with 4 images each." in shown
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
    assert set(colours) <= {tuple(map(str, colour)) for colour in PALETTE[1:]} | {("224", "224", "192")}


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
    assert "No validation image has a mask, so there are no scores." in page
    assert re.findall(r'<img alt="([^"]*)"', page) == IMAGES[:-1] * 3
    assert "mIoU" not in text_of(page)
    assert "confusion" not in page
    assert 'aria-label="total loss, weighted"' in page


def test_a_class_name_that_looks_like_html_is_shown_as_text(trained, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    config = load_config(None, run / "config.yaml", {})
    source = open_source(config.data, seed=config.seed)
    classes = ClassList(classes=tuple(f"<b>{name}</b>" for name in source.classes))
    path = write_report(run, load_run(run), config, replace(source, class_list=classes), None)
    page = path.read_text()
    assert "<b>crab" not in page
    assert "<figcaption>000014: &lt;b&gt;crab&lt;/b&gt;</figcaption>" in page
    assert re.search(r"</i>&lt;b&gt;\w+&lt;/b&gt;</li>", page)


def test_an_evaluation_without_any_score_is_drawn_as_none():
    line = {"step": 3, "evaluation": {kind: {"mean_iou": None} for kind in ("cam", "aux_cam", "seg")}}
    charts = history_charts(History((), (line,)))
    assert list(charts) == ["mIoU, %"]
    assert 'aria-label="mIoU, %"' in charts["mIoU, %"]
