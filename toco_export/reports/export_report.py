"""The report of an export: the same in HTML, Markdown and, in short, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from toco_core.files import write_atomic
from toco_core.html import render
from toco_core.manifest import Manifest, Parity
from toco_core.text import markdown_table
from toco_export.parity.verification import Verification
from toco_export.reports.comparison_images import comparison_strip

HTML_FILE, MARKDOWN_FILE = "export_report.html", "export_report.md"


@dataclass(frozen=True)
class ExportReport:
    """An export and its checks.

    Attributes:
        manifest: What was exported.
        verification: The comparison with PyTorch.
        size_note: Which of the run's sizes are not served and what that costs; empty if all are.
        notes: Sentences about each artefact, by file name.
        required: Smallest share of equal pixels that is accepted, by candidate.
        seconds: Time of each stage.
        peak_bytes: Peak memory of the export; None if the system does not report it.
    """

    manifest: Manifest
    verification: Verification
    size_note: str
    notes: Mapping[str, Sequence[str]]
    required: Mapping[str, float]
    seconds: Mapping[str, float]
    peak_bytes: int | None

    def write(self, folder: Path) -> None:
        """Write the HTML and the Markdown report into a folder."""
        write_atomic(folder / HTML_FILE, self.html())
        write_atomic(folder / MARKDOWN_FILE, self.markdown())

    def verdict(self) -> str:
        """Return the result in one line."""
        count, failures = len(self.verification.parities), self.verification.failures
        if failures:
            return f"FAIL: {len(failures)} of the checks below"
        return f"PASS: all {count} comparisons with PyTorch fp32 are inside their limits"

    def markdown(self) -> str:
        """Return the report as Markdown, without the images."""
        parts = [f"# Export of {self.manifest.backbone}", f"**{self.verdict()}**", *self.verification.failures]
        parts += filter(None, [self.size_note])
        for title, headings, rows in self._tables():
            parts += [f"## {title}", markdown_table(headings, rows)]
        parts += ["## Notes", "\n".join(f"- {note}" for note in self._notes())]
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """Return the report as one page that needs no other file."""
        palette = np.array(self.manifest.palette, np.uint8)
        return render(
            "toco_export.reports",
            "export_report.html.j2",
            backbone=self.manifest.backbone,
            verdict=self.verdict(),
            failures=self.verification.failures,
            size_note=self.size_note,
            tables=self._tables(),
            notes=self._notes(),
            strips=[comparison_strip(name, worst, palette) for name, worst in self.verification.worst.items()],
        )

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Return title, columns and rows of each table."""
        manifest = self.manifest
        parity = ["artefact", "size", "batch", "same label", "required", "mean IoU", "max logit difference",
                  "mean logit difference", "max confidence difference", "latency"]  # fmt: skip
        artefacts = [
            [artefact.file, artefact.format, artefact.precision, f"{artefact.num_bytes / 1e6:,.1f} MB",
             ", ".join(artefact.kept_fp32) or "none"]
            for artefact in manifest.artefacts
        ]  # fmt: skip
        times = [[name, f"{seconds:.1f} s"] for name, seconds in self.seconds.items()]
        return [
            ("Agreement with PyTorch fp32", parity, [self._parity_row(parity) for parity in manifest.parity]),
            ("Artefacts", ["file", "format", "precision", "size", "kept in fp32"], artefacts),
            ("Versions", ["package", "version"], [[*pair] for pair in manifest.versions.items()]),
            ("Time of the stages", ["stage", "time"], times),
        ]

    def _parity_row(self, parity: Parity) -> list[str]:
        shape = parity.shape
        return [
            parity.file,
            f"{shape.height}x{shape.width}",
            str(shape.batch),
            f"{parity.mask_agreement:.3%}",
            f"{self.required[parity.file]:.2%}",
            f"{parity.mean_iou:.4f}",
            _figure(parity.max_logit_difference, ".2g"),
            _figure(parity.mean_logit_difference, ".2g"),
            f"{parity.max_confidence_difference} of 255",
            _figure(parity.latency_ms, ".1f", " ms"),
        ]

    def _notes(self) -> list[str]:
        low, opt, high = (
            f"batch {shape.batch}, {shape.height}x{shape.width}"
            for shape in (self.manifest.profile.min, self.manifest.profile.opt, self.manifest.profile.max)
        )
        return [
            f"Inputs from {low} to {high}; tuned for {opt}.",
            "Images are fitted to the nearest in shape of "
            f"{', '.join(f'{height}x{width}' for height, width in self.manifest.sizes)}.",
            *(f"{file}: {note}" for file, notes in self.notes.items() for note in notes),
            *([f"Peak memory of the export: {self.peak_bytes / 1e9:.1f} GB."] if self.peak_bytes else []),
            "Logits are compared at one value per patch. Latency: one image of that size on this machine's processor, "
            "one call after warm-up.",
        ]


def terminal_table(report: ExportReport) -> Table:
    """Return the agreement as a table for the terminal."""
    table = Table(title="Agreement with PyTorch fp32", title_justify="left")
    table.add_column("artefact", no_wrap=True)
    for heading in ("size", "batch", "same label", "mean IoU", "logit diff.", "conf. diff."):
        table.add_column(heading, justify="right")
    for parity in report.manifest.parity:
        table.add_row(
            parity.file,
            f"{parity.shape.height}x{parity.shape.width}",
            str(parity.shape.batch),
            f"{parity.mask_agreement:.3%}",
            f"{parity.mean_iou:.4f}",
            _figure(parity.max_logit_difference, ".1e"),
            str(parity.max_confidence_difference),
        )
    table.caption = "max difference of the logits, and of the confidence (0 to 255)"
    return table


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
