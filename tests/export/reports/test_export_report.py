from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from small_run import Exported

from tests.chromium import Page, needs_chromium
from toco_core.manifest import read_manifest
from toco_core.palette import VOC_PALETTE
from toco_export.parity.verification import WorstImage
from toco_export.reports.comparison_images import comparison_strip, mark_differences


@pytest.fixture
def page(exported: Exported) -> str:
    return (exported.repository / "export_report.html").read_text(encoding="utf-8")


def test_the_page_needs_no_other_file_and_names_none_of_this_machine(page: str, exported: Exported, run_folder: Path):
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 3 * 4, "four images for each of three candidates"
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|<script|<link", page)
    for text in (page, exported.report):
        assert str(run_folder) not in text
        assert str(Path.cwd()) not in text


def test_the_page_is_well_formed_and_fits_narrow_and_dark_screens(page: str):
    class Balance(HTMLParser):
        opened: list[str]

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.opened += [tag] if tag not in {"meta", "img"} else []

        def handle_endtag(self, tag: str) -> None:
            assert self.opened.pop() == tag

    parser = Balance()
    parser.opened = []
    parser.feed(page)
    assert parser.opened == []
    assert "width=device-width" in page
    assert "prefers-color-scheme: dark" in page


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_complaint_or_overflow(exported: Exported, width: int):
    with Page(exported.repository / "export_report.html", width) as page:
        assert page.complaints == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("window.innerWidth") == width
        assert page.evaluate("[...document.images].filter(image => image.naturalWidth > 0).length") == 12


def test_both_reports_state_the_figures_of_the_manifest(page: str, exported: Exported):
    manifest = read_manifest(exported.repository)
    for text in (page, exported.report):
        assert "PASS: all 18 comparisons with PyTorch fp32 are inside their limits" in text
        for parity in manifest.parity:
            assert f"{parity.mask_agreement:.3%}" in text
            assert parity.max_logit_difference is not None
            assert f"{parity.max_logit_difference:.2g}" in text
        for artefact in manifest.artefacts:
            assert artefact.file in text
        for name, version in manifest.versions.items():
            assert name in text
            assert version in text
    assert "99.95%" in exported.report
    assert "99.70%" in exported.report


def test_the_pixels_that_differ_are_marked_and_counted():
    image = np.full((8, 8, 3), 100, np.uint8)
    expected = np.zeros((8, 8), np.uint8)
    got = expected.copy()
    got[2, 3] = 1
    worst = WorstImage(image, expected, got)
    marked = (mark_differences(worst) == (255, 0, 200)).all(axis=2)
    assert marked.sum() == 9, "a single pixel is widened to three by three"
    assert marked[2, 3]
    strip = comparison_strip("x", worst, VOC_PALETTE)
    assert strip.caption == "x: 1 of 64 pixels differ (8x8)"
    assert list(strip.sources) == ["image", "PyTorch fp32", "x", "different pixels"]
