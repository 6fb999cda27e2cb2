"""What a failed export leaves, and what the next takes away."""

from pathlib import Path

from toco_export.config import ExportConfig
from toco_export.pipeline.failure import clear_failure, failure_folder, write_script
from toco_export.reports.export_report import HTML_FILE, MARKDOWN_FILE


def test_the_next_export_removes_what_a_failed_one_left_and_nothing_else(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    folder = failure_folder(repository)
    for own in (None, "notes.txt"):
        write_script(tmp_path / "run", repository, ExportConfig(), "it failed")
        for name in (HTML_FILE, MARKDOWN_FILE):
            (folder / name).write_text("a report")
        if own:
            (folder / own).write_text("somebody's own")
        clear_failure(repository)
        assert [path.name for path in folder.rglob("*")] == ([own] if own else [])
        assert folder.exists() == bool(own)
    clear_failure(tmp_path / "never-failed")
