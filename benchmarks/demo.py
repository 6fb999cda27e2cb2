"""The main job, end to end, with the commands that a user would type: ``make demo``.

Makes a data set (or takes the one at ``--data``), trains on its image labels, exports, serves with a real Triton, asks
for masks by gRPC, and ends with a table, a summary in JSON and a grid of images.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness.provenance import cpu_name
from toco_core import __version__
from toco_core.cli import run_command
from toco_core.errors import TocoError
from toco_core.files import write_atomic
from toco_core.fitting import Size, fit_to_network
from toco_core.images import read_image
from toco_core.manifest import Manifest, read_manifest
from toco_core.sampling import evenly_spaced
from toco_core.text import percent
from toco_serve import Client, EmbeddedTriton, Ports
from toco_train.config import load_config
from toco_train.data.opening import open_source
from toco_train.data.source import DataSource, Sample, read_mask, with_masks
from toco_train.evaluation.miou import confusion_counts, mean_iou
from toco_train.inference.predict import predict
from toco_train.inference.preview import PREDICTION_TITLES, prediction_row, save_grid
from toco_train.runs.load import load_run

NO_CLASS_FOLDER = "Free"
IMAGE_ROWS = 6
SERVED_COLUMN = PREDICTION_TITLES.index("truth")
COMPARED_IMAGES = 24
LATENCY_WARMUP = 20
LATENCY_CALLS = 200


@dataclass(frozen=True)
class Latency:
    """Time of one call, one image at a time, from the client's side."""

    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Served:
    """What was found at the server's gRPC port."""

    mismatched_pixels: int
    compared_pixels: int
    miou: float | None
    tensor_size: Size
    tensor: Latency
    photograph: Latency
    image: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run every step and show what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="VOC devkit or one sub-folder per class; default: synthetic shapes")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where everything goes")
    parser.add_argument("--images", type=int, default=1500, help="synthetic images")
    parser.add_argument("--train-flags", default="", help="further flags for toco-train, as one string")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False)
    began = time.perf_counter()

    data = arguments.data
    if data is None:
        data = arguments.out / "shapes"
        run_step(console, "A data set", ["toco-shapes", str(data), "--images", str(arguments.images)])
    name = data.resolve().name
    run, repository = arguments.out / f"run-{name}", arguments.out / f"repository-{name}"
    nothing_here = ["--no-class", NO_CLASS_FOLDER] if (data / NO_CLASS_FOLDER).is_dir() else []
    train = ["toco-train", "--preset", "demo", "--data", str(data), "--out", str(run), "--overwrite", *nothing_here]
    run_step(console, "Train on image labels", [*train, *shlex.split(arguments.train_flags)])
    run_step(console, "Export", ["toco-export", str(run), "--fp16", "--repository", str(repository)])

    manifest = read_manifest(repository)
    config = load_config(None, run / "config.yaml", {})
    source = open_source(config.data, seed=config.seed)
    console.rule("[bold]Serve and ask by gRPC")
    console.print(f"$ toco-serve {repository} --grpc-port 0 --http-port 0 --metrics-port 0", style="cyan")
    with EmbeddedTriton(repository, ports=Ports(0, 0, 0)) as triton:
        shown = evenly_spaced(held_back(source), IMAGE_ROWS)
        files = [str(sample.image) for sample in shown]
        masks = arguments.out / f"masks-{name}"
        run_step(console, "", ["toco-predict", *files, "--url", triton.grpc_url, "--out", str(masks)], shown=3)
        with Client(triton.grpc_url) as client:
            served = examine(client, run, repository, source, arguments.out / f"{name}.png")
    summary = summarise(run, manifest, served, seconds=time.perf_counter() - began)
    write_atomic(arguments.out / f"summary-{name}.json", json.dumps(summary, indent=2) + "\n")
    console.print(summary_table(summary))
    console.print(f"image {served.image}    masks {masks}    summary {arguments.out / f'summary-{name}.json'}")
    if served.mismatched_pixels:
        raise TocoError(f"{served.mismatched_pixels} served pixels differ from the exported model's; report this")
    return 0


def run_step(console: Console, title: str, command: Sequence[str], shown: int | None = None) -> None:
    """Run one of our commands as a user would, and show the line that they would type."""
    if title:
        console.rule(f"[bold]{title}")
    words = [*command[:shown], "...", *command[-4:]] if shown else command
    console.print("$ " + " ".join(words), style="cyan", soft_wrap=True)
    program = Path(sys.executable).with_name(command[0])
    began = time.perf_counter()
    status = subprocess.run([str(program), *command[1:]], check=False).returncode
    if status:
        raise SystemExit(status)  # the command has said why
    console.print(f"[dim]{command[0]}: {time.perf_counter() - began:.0f} s[/]")


def held_back(source: DataSource) -> tuple[Sample, ...]:
    """Return the images to validate with, those with masks if there are any; those to train on without either."""
    return with_masks(source.val) or source.val or source.train


def examine(client: Client, run: Path, repository: Path, source: DataSource, image: Path) -> Served:
    """Compare served masks with the exported model's and with the truth, time calls, and draw the grid."""
    samples = held_back(source)
    sizes = read_manifest(repository).sizes
    session = onnxruntime.InferenceSession(repository / "toco" / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    mismatched = compared = 0
    for sample in evenly_spaced(samples, COMPARED_IMAGES):
        pixels = np.asarray(fit_to_network(read_image(sample.image), sizes))[None]
        exported = session.run(["mask"], {"image": pixels})[0]
        mismatched += int((client.segment_tensor(pixels)[0].mask != exported[0]).sum())
        compared += exported.size
    first = samples[0]
    tensor = np.asarray(fit_to_network(read_image(first.image), sizes))[None]
    photograph = first.image.read_bytes()
    draw(client, run, source, image)
    return Served(
        mismatched_pixels=mismatched,
        compared_pixels=compared,
        miou=served_miou(client, with_masks(samples)),
        tensor_size=(tensor.shape[1], tensor.shape[2]),
        tensor=latency(lambda: client.segment_tensor(tensor)),
        photograph=latency(lambda: client.segment(photograph)),
        image=image,
    )


def served_miou(client: Client, samples: Sequence[Sample]) -> float | None:
    """Return the mean IoU of served masks at the photographs' own sizes; None where there is no truth."""
    num_labels = len(client.classes) + 1
    counts = torch.zeros(num_labels, num_labels, dtype=torch.int64)
    for sample in samples:
        mask = torch.from_numpy(client.segment(sample.image).mask.astype(np.int64))
        counts += confusion_counts(mask, torch.from_numpy(read_mask(sample)), num_labels)
    return mean_iou(counts) if samples else None


def latency(call: Callable[[], object]) -> Latency:
    """Time single calls, one after the other, after a warm-up."""
    for _ in range(LATENCY_WARMUP):
        call()
    times = []
    for _ in range(LATENCY_CALLS):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    p50, p99 = np.percentile(times, [50, 99])
    return Latency(float(p50), float(p99))


def draw(client: Client, run: Path, source: DataSource, image: Path) -> None:
    """Write the grid: image, aux CAM, CAM, predicted mask, mask as served, truth."""
    model = load_run(run)
    config = load_config(None, run / "config.yaml", {})
    shown = evenly_spaced(tuple(sample for sample in held_back(source) if sample.labels), IMAGE_ROWS)
    rows = []
    for sample, prediction in zip(shown, predict(model, shown, config.cam.scales, 1), strict=True):
        own = prediction_row(sample, prediction, source.class_list.rgb)
        served = np.asarray(client.segment(sample.image).overlay(sample.image))
        rows.append([*own[:SERVED_COLUMN], served, *own[SERVED_COLUMN:]])
    titles = [*PREDICTION_TITLES[:SERVED_COLUMN], "mask as served", *PREDICTION_TITLES[SERVED_COLUMN:]]
    save_grid(image, rows, titles[: max(map(len, rows))], source.class_list)


def summarise(run: Path, manifest: Manifest, served: Served, seconds: float) -> dict[str, Any]:
    """Gather what the demo found, as plain numbers."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluation = next((line["evaluation"] for line in reversed(lines) if "evaluation" in line), None)
    miou = {} if evaluation is None else {kind: evaluation[kind]["mean_iou"] for kind in ("cam", "aux_cam", "seg")}
    return {
        "toco": __version__,
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "versions": manifest.versions,
        "seconds": seconds,
        "miou": miou if served.miou is None else miou | {"served": served.miou},
        "token_similarity": evaluation and evaluation["token_similarity"],
        "artefacts": {artefact.file: artefact.num_bytes for artefact in manifest.artefacts},
        "parity": {
            file: min(parity.mask_agreement for parity in manifest.parity if parity.file == file)
            for file in dict.fromkeys(parity.file for parity in manifest.parity)
        },
        "served_pixels": {"compared": served.compared_pixels, "different": served.mismatched_pixels},
        "tensor_size": served.tensor_size,
        "latency_ms": {"tensor": asdict(served.tensor), "photograph": asdict(served.photograph)},
    }


def summary_table(summary: dict[str, Any]) -> Table:
    """Return the table that the demo ends with."""
    height, width = summary["tensor_size"]
    table = Table(title=f"ToCo demo, {summary['seconds'] / 60:.1f} minutes on {summary['machine']}", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    names = {"cam": "CAM", "aux_cam": "aux CAM", "seg": "segmentation", "served": "segmentation as served"}
    for kind, value in summary["miou"].items():
        table.add_row(f"mIoU {names[kind]}", f"{percent(value)} %")
    if summary["token_similarity"] is not None:
        table.add_row("mean pairwise |cosine| of final tokens", f"{summary['token_similarity']:.3f}")
    table.add_section()
    for file, num_bytes in summary["artefacts"].items():
        table.add_row(f"size of {file}", f"{num_bytes / 1e6:.1f} MB")
    for file, agreement in summary["parity"].items():
        table.add_row(f"pixels as PyTorch, {file} (worst size)", f"{agreement:.3%}")
    pixels = summary["served_pixels"]
    table.add_row("served pixels unlike the exported model's", f"{pixels['different']} of {pixels['compared']:,}")
    table.add_section()
    for name, what in (("tensor", f"{height}x{width} tensor"), ("photograph", "encoded photograph")):
        times = summary["latency_ms"][name]
        table.add_row(f"gRPC latency, {what}", f"p50 {times['p50_ms']:.1f} ms   p99 {times['p99_ms']:.1f} ms")
    return table


if __name__ == "__main__":
    sys.exit(run_command("demo")(main)(None))
