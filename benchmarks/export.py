"""What an export costs: `toco-export --fp16`, the whole command several times, with its stages and its peak memory.

    python -m benchmarks.export --backbone demo
    python -m benchmarks.export --backbone vit_base_patch16_224 --size 448 --report benchmarks/results/NAME

Weights are random, and the 16 images that it verifies with are drawn.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from benchmarks.cases.recipe import recipe
from benchmarks.harness.images import write_images
from benchmarks.harness.processes import Found, in_another
from benchmarks.harness.provenance import provenance, provenance_text, save_report
from benchmarks.harness.timing import SPREAD, Series, spread_cell
from toco_core.cli import run_command
from toco_core.errors import ExportError
from toco_core.manifest import read_manifest
from toco_core.text import markdown_table
from toco_export.config import ExportConfig
from toco_train.models.toco import ToCo
from toco_train.runs.layout import CONFIG_FILE, WEIGHTS_FILE

CPU = torch.device("cpu")
STAGE = re.compile(r"^([a-z]+) +(\d+\.\d) s  ", re.MULTILINE)
REST = "start and end of Python"
METHOD = """\
{exports} exports, one after the other, each the command as a user types it: from its start to its end, the import of
PyTorch included. It writes the fp32 and fp16 ONNX files and the engine of the library that is installed, and verifies
with {images} images at three sizes. Stages: as the command prints them. Peak memory: the largest resident set of the
process. """


def main(argv: Sequence[str] | None = None) -> int:
    """Export, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="demo", help="timm name, or 'demo' for the small ViT of that preset")
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: the recipe's)")
    parser.add_argument("--exports", type=int, choices=range(1, 21), default=5, metavar="N", help="how many times")
    parser.add_argument("--report", type=Path, help="write the table there, as .json and .md")
    arguments = parser.parse_args(argv)
    origin = provenance(CPU, "benchmarks.export", argv)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        (written,) = in_another(write_run, run, arguments.backbone, arguments.size)
        found = export_often(run, arguments.exports)
        origin["versions"] |= read_manifest(run / "repository").versions
    result = {
        "provenance": origin,
        "setting": {"backbone": arguments.backbone, "exports": arguments.exports, **written},
        **found,
    }
    text = as_markdown(result)
    print(text)
    if arguments.report:
        save_report(arguments.report, result, text)
    return 0


def write_run(run: Path, backbone: str, size: int | None) -> Iterator[Found]:
    """Write a run folder with random weights, and images; a process of its own keeps its memory out of the peaks."""
    torch.manual_seed(0)
    config = recipe(backbone, size=size).model
    images = run / "images"
    images.mkdir(parents=True)
    write_images(images, 2 * ExportConfig().num_images)
    save_file({name: value.contiguous() for name, value in ToCo(config).state_dict().items()}, run / WEIGHTS_FILE)
    content = {"model": config.model_dump(mode="json"), "data": {"path": str(images)}}
    (run / CONFIG_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    yield {"size": config.image_size}


def export_often(run: Path, exports: int) -> dict[str, Any]:
    """Run the command some times; return the seconds of the whole and of each stage, and the peak in bytes.

    Raises:
        ExportError: It fails.
    """
    stages: dict[str, list[float]] = {}
    wholes, peaks = [], []
    command = [str(Path(sys.executable).with_name("toco-export")), str(run), "--fp16"]
    for index in range(exports):
        print(f"export {index + 1} of {exports}", file=sys.stderr)
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wholes.append(time.perf_counter() - began)
        peaks.append(1024.0 * usage.ru_maxrss)
        if process.returncode:
            raise ExportError(f"toco-export ended with status {process.returncode}; its message is above")
        found = {name: float(seconds) for name, seconds in STAGE.findall(output)}
        for name, seconds in {**found, REST: wholes[-1] - sum(found.values())}.items():
            stages.setdefault(name, []).append(seconds)
    return {
        "seconds": Series(tuple(wholes)).as_json(),
        "stage_seconds": {name: float(np.median(values)) for name, values in stages.items()},
        "peak_bytes": Series(tuple(peaks)).as_json(),
    }


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the table, with what it was measured on and how."""
    setting, whole, peak = result["setting"], result["seconds"], result["peak_bytes"]
    rows = [[name, f"{seconds:.1f} s", ""] for name, seconds in result["stage_seconds"].items()]
    rows.append(["the whole command", f"{whole['median']:.1f} s", spread_cell(whole)])
    rows.append(["peak memory", f"{peak['median'] / 1e9:.2f} GB", spread_cell(peak)])
    method = METHOD.format(exports=setting["exports"], images=ExportConfig().num_images)
    return "\n\n".join([
        f"# Export of {setting['backbone']}, {setting['size']} px",
        provenance_text(result["provenance"]),
        markdown_table(("stage", "median", "spread"), rows),
        method + SPREAD,
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command("export")(main)(None))
