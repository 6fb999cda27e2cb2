"""How many small faults in the method, the network, the exported graph and the served models do the tests find?

    python -m benchmarks.mutation [--sample 400] [--seed 0] [--jobs 2] [--only TEXT] [--report FOLDER/NAME]

Takes a random sample of the mutants that cosmic-ray makes of these files and runs the tests of the file on each. The
mutants are written to copies: nothing in the checkout changes. ``mutation-reasons.yaml`` beside the report says why
known survivors survive.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
import yaml

from benchmarks.harness.mutants import Mutant, draw_mutants
from benchmarks.harness.provenance import provenance, provenance_text, save_report
from benchmarks.harness.warm_pytest import PytestRun, WarmPytest
from toco_core.cli import run_command
from toco_core.errors import ConfigError
from toco_core.text import markdown_table

ROOT = Path(__file__).parents[1]
REASONS = "mutation-reasons.yaml"
METHOD = "tests/train/method"
SERVED = "tests/serve/triton_models"
MODELS = "tests/train/models"
WHOLE_STEP = (f"{METHOD}/test_golden.py", f"{METHOD}/test_whole_step.py", f"{METHOD}/test_step.py")
# Which tests are run on the mutants of a file: those of the first pattern that fits, in this order.
TESTS: dict[str, tuple[str, ...]] = {
    "toco_train/method/cam.py": (f"{METHOD}/test_cam.py", *WHOLE_STEP),
    "toco_train/method/pseudo_label.py": (f"{METHOD}/test_cam.py", *WHOLE_STEP),
    "toco_train/method/crf.py": (f"{METHOD}/test_crf_energies.py", f"{METHOD}/test_crf.py"),
    "toco_train/method/local_crops.py": (f"{METHOD}/test_local_crops.py", *WHOLE_STEP),
    "toco_train/method/par.py": (*WHOLE_STEP, f"{METHOD}/test_cam.py"),
    "toco_train/method/losses/dense_energy.py": (
        f"{METHOD}/test_dense_energy.py", f"{METHOD}/test_losses.py", f"{METHOD}/test_whole_step.py",
    ),
    "toco_train/method/losses/*.py": (f"{METHOD}/test_losses.py", *WHOLE_STEP),
    "toco_train/method/*.py": (*WHOLE_STEP, f"{METHOD}/test_cam.py"),
    "toco_train/models/normalize.py": WHOLE_STEP,
    "toco_train/models/pretrained.py": (f"{MODELS}/test_network.py", f"{MODELS}/test_pretrained.py"),
    "toco_train/models/published_weights.py": (f"{METHOD}/test_golden.py",),
    "toco_train/models/vit.py": (
        f"{MODELS}/test_network.py", f"{MODELS}/test_model.py", f"{MODELS}/test_pretrained.py",
    ),
    "toco_train/models/*.py": (f"{MODELS}/test_network.py", f"{MODELS}/test_heads.py", f"{MODELS}/test_model.py"),
    "toco_export/graph.py": ("tests/export/onnx/test_exported_forms.py", "tests/export/onnx/test_graph.py"),
    "triton_models/toco/1/model.py": (
        f"{SERVED}/test_toco_model.py", f"{SERVED}/test_rtx_session.py", "tests/serve/client/test_served_tensors.py",
    ),
    "triton_models/toco_image/1/model.py": (
        f"{SERVED}/test_toco_image_model.py", "tests/serve/client/test_served_images.py",
    ),
    "toco_core/rle.py": ("tests/core/test_rle.py", "tests/serve/client/test_polygons.py",),
    "toco_core/rgb.py": ("tests/core/test_images.py", "tests/core/test_one_reader.py"),
    "toco_core/fitting.py": ("tests/core/test_fitting.py", "tests/serve/test_one_size_everywhere.py"),
}  # fmt: skip
FILES = (
    "toco_train/method/*.py", "toco_train/method/losses/*.py", "toco_train/models/*.py", "toco_export/graph.py",
    "triton_models/*/1/model.py", "toco_core/rle.py", "toco_core/rgb.py", "toco_core/fitting.py",
)  # fmt: skip
GPU_NAMES = {"triton_models/toco/1/model.py": ("RtxSession", "error_log", "open_engine")}
PRELOADED = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "hypothesis", "PIL.Image", "pydantic", "yaml",
             "safetensors.torch", "torch.utils.data", "torchvision.transforms.v2")  # fmt: skip
OPTIONS = ("-m", "not slow and not gpu and not chaos")
UNMUTATED_LIMIT_S = 600.0
FACTOR, ALLOWANCE_S = 4, 15  # a run may take this many times the time of the tests without a mutant, and so much more


@dataclass(frozen=True)
class Result:
    """What the tests said of a mutant."""

    mutant: Mutant
    run: PytestRun

    def as_json(self, reason: str) -> dict[str, Any]:
        """Return the result without the code; ``reason`` is why it survived."""
        mutant, run = self.mutant, self.run
        return {"file": mutant.file, "line": mutant.line, "operator": mutant.operator, "before": mutant.before,
                "after": mutant.after, "killed": not run.passed, "by": run.reason, "seconds": run.seconds,
                **({"reason": reason} if run.passed else {})}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the mutants, test them, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=400, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested at a time")
    parser.add_argument(
        "--only", default="", help="of the sample, test only the mutants of files with this in their path"
    )
    parser.add_argument("--report", type=Path, help="write the report there, as .json and .md")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # takes the copies away
    origin = provenance(torch.device("cpu"), "benchmarks.mutation", argv)
    origin["versions"]["cosmic-ray"] = version("cosmic-ray")
    files = sorted(path.relative_to(ROOT).as_posix() for pattern in FILES for path in ROOT.glob(pattern))
    sample = draw_mutants(ROOT, files, arguments.sample, arguments.seed, GPU_NAMES)
    mutants = [mutant for mutant in sample if arguments.only in mutant.file]
    if not mutants:
        raise ConfigError(
            f"no mutant of the sample is in a file whose path has {arguments.only!r}; give another --only"
        )
    results = list(try_mutants(ROOT, mutants, TESTS, arguments.jobs))
    folder = arguments.report.parent if arguments.report else ROOT / "benchmarks/results"
    report = as_report(results, read_reasons(folder / REASONS))
    report["provenance"] = origin
    text = as_markdown(report)
    print(text)
    if arguments.report:
        save_report(arguments.report, report, text)
    return 0


def try_mutants(
    root: Path,
    mutants: Sequence[Mutant],
    tests: Mapping[str, Sequence[str]],
    jobs: int,
    preloaded: Sequence[str] = PRELOADED,
) -> Iterator[Result]:
    """Run the tests of each mutant's file on it, in copies of the checkout; yield the results as they come.

    Raises:
        ConfigError: A test fails without a mutant, before the first or after the last.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutation-")))
        workers: SimpleQueue[WarmPytest] = SimpleQueue()
        original = copy_packages(root, scratch / "0/tree")
        first = stack.enter_context(WarmPytest(original, scratch / "0", preloaded))
        limits = time_limits(first, {chosen_tests(mutant.file, tests) for mutant in mutants})
        workers.put(first)
        for job in map(str, range(1, jobs)):
            tree = shutil.copytree(original, scratch / job / "tree")
            workers.put(stack.enter_context(WarmPytest(tree, scratch / job, preloaded)))

        def attempt(mutant: Mutant) -> Result:
            worker = workers.get()
            chosen = chosen_tests(mutant.file, tests)
            try:
                return Result(mutant, run_mutated(worker, mutant, chosen, limits[chosen]))
            finally:
                workers.put(worker)

        threads = stack.enter_context(ThreadPoolExecutor(jobs))
        began = time.monotonic()
        for number, result in enumerate(threads.map(attempt, mutants), 1):
            print(progress_line(result, number, len(mutants), time.monotonic() - began), flush=True)
            yield result
        time_limits(first, limits)  # whatever broke them meanwhile would have been taken for kills


def copy_packages(root: Path, tree: Path) -> Path:
    """Copy the Python packages of a checkout, and its settings, to a new folder."""
    tree.mkdir(parents=True)
    for package in root.glob("*/__init__.py"):
        shutil.copytree(
            package.parent, tree / package.parent.name, ignore=shutil.ignore_patterns("__pycache__", "results", ".*")
        )
    shutil.copy2(root / "pyproject.toml", tree)
    return tree


def chosen_tests(file: str, tests: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the tests of a file, by the first pattern that fits it."""
    for pattern, chosen in tests.items():
        if fnmatch(file, pattern):
            return tuple(dict.fromkeys(chosen))
    raise ConfigError(f"no tests are named for {file}; add it to TESTS of benchmarks/mutation.py")


def time_limits(worker: WarmPytest, selections: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    """Run each selection of tests without a mutant; return the seconds that it may take with one."""
    limits = {}
    for chosen in sorted(selections):
        run = worker.run([*OPTIONS, *chosen], UNMUTATED_LIMIT_S, write_bytecode=True)
        if not run.passed:
            output = "\n".join(worker.output.read_text(errors="replace").splitlines()[-40:])
            raise ConfigError(
                f"{', '.join(chosen)} fail without a mutant too ({run.reason}); mend them first:\n{output}"
            )
        print(f"{run.seconds:6.1f} s without a mutant: {', '.join(chosen)}", flush=True)
        limits[chosen] = FACTOR * run.seconds + ALLOWANCE_S
    return limits


def run_mutated(worker: WarmPytest, mutant: Mutant, tests: Sequence[str], limit_s: float) -> PytestRun:
    """Run tests on a mutant in the worker's copy, and put the copy back."""
    path = worker.tree / mutant.file
    source = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutant.code, encoding="utf-8")
        return worker.run([*OPTIONS, *tests], limit_s)
    finally:
        path.write_text(source, encoding="utf-8")


def progress_line(result: Result, number: int, total: int, elapsed_s: float) -> str:
    """Say in one line how a mutant ended and how long the others may take."""
    mutant, run = result.mutant, result.run
    left = elapsed_s / number * (total - number) / 60
    found = f"SURVIVED {mutant.before}  ->  {mutant.after}" if run.passed else f"killed by {run.reason}"
    return f"[{number}/{total}, {left:.0f} min left] {mutant.file}:{mutant.line} {run.seconds:.1f} s {found}"


def read_reasons(path: Path) -> dict[tuple[str, str, str], str]:
    """Read why survivors survive, by file, line before and line after; none where there is no such file."""
    if not path.is_file():
        return {}
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {(entry["file"], entry["before"], entry["after"]): entry["reason"] for entry in entries}


def as_report(results: Sequence[Result], reasons: Mapping[tuple[str, str, str], str]) -> dict[str, Any]:
    """Return the figures: in all, by file, and every mutant, the survivors with their reasons."""
    by_file: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda each: (each.mutant.file, each.mutant.line, each.mutant.operator)):
        by_file.setdefault(result.mutant.file, []).append(result)
    return {
        "mutants": len(results),
        "killed": sum(not result.run.passed for result in results),
        "seconds_each": sum(result.run.seconds for result in results) / len(results),
        "files": {
            file: {"mutants": len(found), "killed": sum(not result.run.passed for result in found)}
            for file, found in by_file.items()
        },
        "results": [
            result.as_json(reasons.get((file, result.mutant.before, result.mutant.after), "none given"))
            for file, found in by_file.items()
            for result in found
        ],
    }


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return the figures as tables."""
    rows = [
        [file, str(found["mutants"]), str(found["killed"]), f"{100 * found['killed'] / found['mutants']:.0f} %"]
        for file, found in report["files"].items()
    ]
    share = report["killed"] / report["mutants"]
    rows.append(["all", str(report["mutants"]), str(report["killed"]), f"{100 * share:.1f} %"])
    survivors = [
        [f"{found['file']}:{found['line']}", f"`{found['before']}`", f"`{found['after']}`", found["reason"]]
        for found in report["results"]
        if not found["killed"]
    ]
    return "\n\n".join(
        [
            f"# Mutants: {report['killed']} of {report['mutants']} are killed ({100 * share:.1f} %)",
            provenance_text(report["provenance"]),
            "A mutant is a copy of a file with one operator, number, condition or decorator changed by cosmic-ray. It "
            f"is killed if a test fails, or if the tests take more than {FACTOR} times as long as without it, and "
            f"{ALLOWANCE_S} s more. Messages, annotations and code that only a GPU runs are not changed. The mutants "
            f"are a random sample; one took {report['seconds_each']:.1f} s.",
            markdown_table(("file", "mutants", "killed", "share"), rows),
            "## Survivors",
            markdown_table(("place", "before", "after", "reason"), survivors),
        ]
    )


if __name__ == "__main__":
    sys.exit(run_command("mutation")(main)(None))
