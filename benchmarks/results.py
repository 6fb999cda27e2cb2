"""Make docs/results.md and the index of benchmarks/results from the newest report of each kind and machine.

A report is ``DATE-NAME.md`` with figures beside it, or ``DATE-demo-NAME.json``, which the demo writes. ``NAME`` begins
with the name of its kind. With ``--check`` nothing is written: the command fails where a page is not up to date, or
where a report has been replaced by a newer one and not deleted.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from toco_core.cli import run_command
from toco_core.errors import TocoError
from toco_core.files import write_atomic
from toco_core.text import markdown_table, percent

ROOT = Path(__file__).parents[1]
REPORTS = Path("benchmarks", "results")
INDEX, PAGE = REPORTS / "README.md", Path("docs", "results.md")

_NAME = re.compile(r"(\d{4}-\d\d-\d\d)-(.+)")
_MACHINE = re.compile(r"NVIDIA [^;.\n]+|CPU: [^;.\n]+|[^;.\n]*, \d+ cores")
_IMAGE = re.compile(r"!\[(.*?)\]\((.*?)\)")
_COMMAND = re.compile(r"^`([^`\n]+)`$|^```sh\n(.+?)\n```$", re.MULTILINE | re.DOTALL)
_MADE = "Made by `python -m benchmarks.results` from the reports in `benchmarks/results`; do not edit."


class Kind(NamedTuple):
    """A kind of report: how its file names begin, its heading, its question, and which rows of its table are shown."""

    prefix: str
    heading: str
    question: str
    rows: str = ""


KINDS = (
    Kind("demo", "Demo", "Does the whole path work, from tags to masks over gRPC, and what comes out?"),
    Kind("quality", "Parts of the method", "What is each part of the method worth, over several seeds?"),
    Kind("contrast", "With and without the contrasts", "What are both contrasts worth, all else kept?"),
    Kind("convergence", "Convergence", "Does a timm ViT learn the synthetic shapes from random weights?"),
    Kind("magnetic-tiles", "Few photographs", "What is learned from 345 photographs without pretrained weights?"),
    Kind("training-step", "Training step", "What does a step cost beside the published order of computation?"),
    Kind("data-loading", "Data loading", "How fast are images read and augmented?"),
    Kind("export", "Export", "How long does an export take, stage by stage, and how much memory?"),
    Kind("inference", "Inference", "How fast is one batch in each runtime?", r"(448|96) px, batch (1|32) "),
    Kind("serving", "Serving", "What does Triton add to one image, and how does it behave under load?"),
    Kind("startup", "Start-up", "How long does each command take to print its help?"),
    Kind("fuzz-readers", "Damaged data", "Does a damaged data set ever end in anything but a sentence?"),
    Kind("mutation", "Mutation", "How many small faults in the code do the tests find?"),
    Kind("gpu", "GPU", "What do the tests and benchmarks say on one machine with a GPU?"),
)


@dataclass(frozen=True)
class Report:
    """One report.

    Attributes:
        file: Its name.
        name: Its kind and what it measures: the file's name without date and suffix.
        date: ISO date.
        kind: Its kind.
        title: Its heading.
        machine: What it was measured on.
        origin: Its first paragraph, where that is machine, versions and date; else empty.
        command: How it is made again.
        table: Its main table, as Markdown.
        images: Alternative text and file name of its images.
    """

    file: str
    name: str
    date: str
    kind: Kind
    title: str
    machine: str
    origin: str
    command: str
    table: str
    images: tuple[tuple[str, str], ...]


def read_reports(folder: Path) -> list[Report]:
    """Read all reports of a folder, the newest first.

    Raises:
        TocoError: A report is of no known kind, or does not say its machine or its command.
    """
    files = [file for file in folder.glob("*.md") if file.name != INDEX.name] + list(folder.glob("*-demo-*.json"))
    files = [file for file in files if file.suffix == ".md" or not file.with_suffix(".md").is_file()]
    return sorted(map(_read, files), key=lambda report: (report.date, report.file), reverse=True)


def newest(reports: Sequence[Report]) -> tuple[list[Report], list[Report]]:
    """Return the newest report of each name, in the order of the kinds, and those that they replace."""
    by_name: dict[str, Report] = {}
    replaced = [report for report in reports if by_name.setdefault(report.name, report) is not report]
    return sorted(by_name.values(), key=lambda report: (KINDS.index(report.kind), report.name)), replaced


def _read(file: Path) -> Report:
    name = _NAME.fullmatch(file.stem)
    kind = next((kind for kind in KINDS if name and name[2].startswith(kind.prefix)), None)
    if name is None or kind is None:
        known = ", ".join(kind.prefix for kind in KINDS)
        raise TocoError(f"report {file} has an unknown name; expected DATE-KIND..., KIND one of {known}")
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        text = _demo_text(json.loads(text), file.stem, image=file.with_suffix(".png").is_file())
    title, _, body = text.removeprefix("# ").partition("\n")
    command, machine = _COMMAND.search(body), _MACHINE.search(body)
    if command is None or machine is None:
        missing = "machine" if command else "command"
        raise TocoError(f"report {file} does not name its {missing}; write it as the other reports do")
    first = next(filter(None, map(str.strip, body.split("\n\n"))))
    return Report(
        file=file.name,
        name=name[2],
        date=name[1],
        kind=kind,
        title=title,
        machine=machine[0].strip().removeprefix("CPU: "),
        origin=first if first.startswith(machine[0].strip()) else "",
        command=command[1] or command[2],
        table=next(_tables(body, kind.rows), ""),
        images=tuple(_IMAGE.findall(body)),
    )


def _tables(text: str, rows: str) -> Iterator[str]:
    """Yield the tables of a text; of those that have rows that match, these alone."""
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        heading, rule, *body = block.strip().splitlines()
        matching = [row for row in body if rows and re.match(rf"\| {rows}", row)]
        yield "\n".join([heading, rule, *(matching or body)])


def _demo_text(summary: Mapping[str, Any], stem: str, *, image: bool) -> str:
    """Write what the demo found as the text of a report."""
    score = {"cam": "CAM", "aux_cam": "auxiliary CAM", "seg": "segmentation", "served": "masks as served"}
    latency = {"tensor": "tensor", "photograph": "encoded image"}
    rows = [
        *([f"mIoU, {score[kind]}", f"{percent(value)} %"] for kind, value in summary["miou"].items()),
        *([["mean absolute cosine of pairs of final tokens", f"{summary['token_similarity']:.3f}"]]
          if summary["token_similarity"] is not None else []),
        *([f"size of `{file}`", f"{size / 1e6:.1f} MB"] for file, size in summary["artefacts"].items()),
        *([f"pixels labelled as by PyTorch, worst size, `{file}`", f"{100 * share:.2f} %"]
          for file, share in summary["parity"].items()),
        *([f"gRPC latency of one {latency[kind]}, p50 / p99", f"{times['p50_ms']:.1f} / {times['p99_ms']:.1f} ms"]
          for kind, times in summary["latency_ms"].items()),
        ["all of it, after set-up", f"{summary['seconds'] / 60:.1f} minutes"],
    ]  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    picture = f"\n\n![Image, auxiliary CAM, CAM, predicted mask, mask as served, truth]({stem}.png)" if image else ""
    origin = f"CPU: {summary['machine']}; {versions}; {stem[:10]}."
    name = stem.partition("-demo-")[2].capitalize()
    return f"# {name}\n\n{origin}\n\n`make demo`\n\n{markdown_table(['what', 'value'], rows)}{picture}\n"


def index_page(reports: Sequence[Report]) -> str:
    """Return benchmarks/results/README.md: each report with its machine, date and command."""
    rows = [
        [f"[{report.name}]({report.file})", report.machine, report.date, f"`{_first_command(report.command)}`"]
        for report in reports
    ]
    table = markdown_table(["report", "machine", "date", "command"], rows, align="left")
    return f"# Reports\n\n{_MADE}\n\n{table}\n"


def results_page(reports: Sequence[Report]) -> str:
    """Return docs/results.md: the main table and images of each report."""
    parts = ["# Results", _MADE]
    parts.append(
        "Each report holds more tables and says how it was measured. What the words mean and how two reports are "
        "compared: [benchmarks](../benchmarks/README.md). What the figures do not show: [limits](limits.md)."
    )
    for kind in KINDS:
        own = [report for report in reports if report.kind == kind]
        if own:
            parts += [f"## {kind.heading}", kind.question, *(part for report in own for part in _section(report))]
    return "\n\n".join(parts) + "\n"


def _section(report: Report) -> Iterator[str]:
    """Yield the paragraphs of one report."""
    yield f"### {report.name}"
    yield f"{report.title}. {report.origin or f'{report.machine}; {report.date}.'}"
    yield f"```sh\n{report.command}\n```"
    yield report.table
    base = Path("..", REPORTS).as_posix()
    for text, file in report.images:
        yield f"![{text}]({base}/{file})"
    yield f"[Full report]({base}/{report.file})"


def _first_command(command: str) -> str:
    """Return the first command of several, with a mark where there are more."""
    first, *more = [line for line in command.splitlines() if not line.startswith(" ")]
    return first + (" ..." if more else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Write both pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something is out of date")
    arguments = parser.parse_args(argv)
    reports, replaced = newest(read_reports(ROOT / REPORTS))
    pages = {INDEX: index_page(reports), PAGE: results_page(reports)}
    if not arguments.check:
        for path, text in pages.items():
            write_atomic(ROOT / path, text)
        return 0
    if replaced:
        raise TocoError(f"{REPORTS / replaced[0].file} has been replaced by a newer report; delete it")
    for path, text in pages.items():
        if not (ROOT / path).is_file() or (ROOT / path).read_text(encoding="utf-8") != text:
            raise TocoError(f"{path} is not up to date; run python -m benchmarks.results")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("results")(main)(None))
