"""The pages of results are made from the newest reports, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import results
from toco_core.errors import TocoError

REPORT = """# Training step: a network

CPU: AMD EPYC; host AMD EPYC, 2 cores; torch 2.14.1; {date} 11:00 UTC.

`python -m benchmarks.training_step --repeats 5`

| variant | median, ms |
|---|--:|
| ours | {median} |

![Times]({date}-training-step-demo-cpu.png)

| phase | ms |
|---|--:|
| forward | 3 |
"""
INFERENCE = """# Inference

NVIDIA H200; host of it; torch 2.14.1; 2026-01-03 11:00 UTC.

`python -m benchmarks.inference`

| input | median, ms |
|---|--:|
| 224 px, batch 1 | 1 |
| 448 px, batch 1 | 2 |
| 448 px, batch 8 | 3 |
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for date, median in (("2026-01-01", 10), ("2026-01-02", 20)):
        text = REPORT.format(date=date, median=median)
        (tmp_path / f"{date}-training-step-demo-cpu.md").write_text(text, encoding="utf-8")
    (tmp_path / "2026-01-03-inference-vit-b-gpu.md").write_text(INFERENCE, encoding="utf-8")
    (tmp_path / "README.md").write_text("# The index\n", encoding="utf-8")
    return tmp_path


def test_the_newest_report_of_each_name_is_shown_and_older_ones_are_named(folder: Path) -> None:
    shown, replaced = results.newest(results.read_reports(folder))
    assert [report.file for report in shown] == [
        "2026-01-02-training-step-demo-cpu.md", "2026-01-03-inference-vit-b-gpu.md"
    ]  # fmt: skip
    assert [report.file for report in replaced] == ["2026-01-01-training-step-demo-cpu.md"]


def test_the_page_quotes_machine_command_first_table_and_images(folder: Path) -> None:
    page = results.results_page(results.newest(results.read_reports(folder))[0])
    assert "### training-step-demo-cpu\n\nTraining step: a network. CPU: AMD EPYC; host AMD EPYC, 2 cores;" in page
    assert "```sh\npython -m benchmarks.training_step --repeats 5\n```\n\n| variant | median, ms |\n" in page
    assert "| ours | 20 |" in page
    assert "| ours | 10 |" not in page
    assert "forward" not in page
    assert "![Times](../benchmarks/results/2026-01-02-training-step-demo-cpu.png)" in page


def test_of_a_long_table_only_the_rows_of_the_kind_are_quoted(folder: Path) -> None:
    page = results.results_page(results.newest(results.read_reports(folder))[0])
    assert [line for line in page.splitlines() if "px, batch" in line] == ["| 448 px, batch 1 | 2 |"]


def test_the_index_has_one_line_for_each_report_with_machine_date_and_command(folder: Path) -> None:
    page = results.index_page(results.newest(results.read_reports(folder))[0])
    assert page.splitlines()[-1] == (
        "| [inference-vit-b-gpu](2026-01-03-inference-vit-b-gpu.md) | NVIDIA H200 | 2026-01-03 "
        "| `python -m benchmarks.inference` |"
    )


def test_a_report_without_a_command_is_refused(folder: Path) -> None:
    report = folder / "2026-01-04-export-cpu.md"
    report.write_text("# Export\n\nCPU: AMD EPYC; host.\n", encoding="utf-8")
    with pytest.raises(TocoError, match=r"export-cpu\.md does not name its command; write it as the other reports do"):
        results.read_reports(folder)


def test_a_report_of_an_unknown_kind_is_refused(folder: Path) -> None:
    (folder / "2026-01-04-weather.md").write_text(INFERENCE, encoding="utf-8")
    with pytest.raises(TocoError, match="has an unknown name; expected DATE-KIND"):
        results.read_reports(folder)


def test_the_pages_of_this_project_are_up_to_date() -> None:
    assert results.main(["--check"]) == 0


@pytest.mark.parametrize("page", [results.INDEX, results.PAGE])
def test_a_page_that_was_edited_is_found(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    (tmp_path / results.REPORTS).mkdir(parents=True)
    (tmp_path / results.REPORTS / "2026-01-03-inference-vit-b-gpu.md").write_text(INFERENCE, encoding="utf-8")
    assert results.main([]) == 0
    assert results.main(["--check"]) == 0
    (tmp_path / page).write_text("# Edited\n", encoding="utf-8")
    with pytest.raises(TocoError, match=f"{page} is not up to date; run python -m benchmarks.results"):
        results.main(["--check"])
