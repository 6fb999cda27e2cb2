"""What serving costs: masks by gRPC from a real Triton beside the same ONNX Runtime session in this process.

    python -m benchmarks.serving --backbone demo
    python -m benchmarks.serving --backbone vit_base_patch16_224 --report benchmarks/results/NAME

Weights are random. The server, its clients and the session share this machine's processors.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import onnxruntime
import torch
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from benchmarks.backends import CPU, noise
from benchmarks.load import Load, closed_loop, open_loop
from benchmarks.peaks import gemm_peak
from benchmarks.perf_analyzer import second_opinion
from benchmarks.reports import markdown_table, provenance, provenance_text, save_report
from benchmarks.runner import SPREAD, Series, interleaved, ratio_cell, spread_cell, warm_up
from benchmarks.training_step import add_network_arguments, recipe
from toco.command import run_command
from toco_export.config import ExportConfig, resolve_profile
from toco_export.description import describe_artefact, describe_export
from toco_export.graph import INPUT_NAME, OUTPUT_NAMES, ServedModel, exported_model
from toco_export.onnx_file import export_onnx
from toco_export.repository import artefact_folder, complete_repository
from toco_serve import Client, EmbeddedTriton, Ports
from toco_train.model import ToCo

mpl.use("Agg")

PHOTOGRAPH_SIDES = (1100, 1100)  # square, so that toco_image asks for the very size that is timed in process
WARMUP_CALLS = 5
OPEN_LOADS = (0.5, 0.8, 0.95)

METHOD = """\
One at a time: the four calls take turns, {repeats} rounds after {warmup} to warm up. in process: ONNX Runtime on the
exported file with the options of the server ({threads} threads, which sleep between calls). toco: the same image as a
tensor by gRPC. decode: this process decodes a JPEG of {width} x {height} px, resizes it to the network's size, and the
answer back. toco_image: the same JPEG by gRPC. Ratio: toco over in process, toco_image over in process + decode. Closed
loop: each client sends its next image when the last is answered; batched: in this process, batches of {batch}. Open
loop: images arrive at random (Poisson) at a share of the highest closed-loop rate; their time begins when they are due.
{seconds:g} s each; the clients use the same processors as the server. Under load the rounds of the spread are the
answers, in their order. All images are noise. perf_analyzer: NVIDIA's, the same closed loop on the same server, in
windows of that length until three agree."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_arguments(parser)
    parser.add_argument("--repeats", type=int, default=50, help="rounds of one call each")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64], help="closed-loop clients")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each load")
    parser.add_argument("--report", type=Path, help="write the tables there, as .json, .md and .png")
    arguments = parser.parse_args(argv)
    extremes = sorted({min(arguments.clients), max(arguments.clients)})
    found = provenance(CPU, "benchmarks.serving", argv)  # first: the load average is that before our own
    found["versions"] |= {"onnxruntime": onnxruntime.__version__}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        repository = Path(folder) / "repository"
        size = make_repository(arguments.backbone, repository)
        began = time.perf_counter()
        with EmbeddedTriton(repository, ports=Ports(0, 0, 0)) as triton:
            ready_s = time.perf_counter() - began
            clients = [stack.enter_context(Client(triton.grpc_url)) for _ in range(max(arguments.clients))]
            bench = Bench(artefact_folder(repository) / "model.onnx", size, clients)
            result = {
                "provenance": found,
                "setting": {"backbone": arguments.backbone, "size": size, "repeats": arguments.repeats,
                            "seconds": arguments.seconds, "threads": torch.get_num_threads(), "batch": Bench.BATCH},
                "ready_s": ready_s,
                "one_at_a_time": bench.one_at_a_time(arguments.repeats),
                **bench.loads(arguments.clients, arguments.seconds),
                "perf_analyzer": second_opinion(triton.grpc_url, size, extremes, arguments.seconds),
                "gemm_flops_per_second": gemm_peak(CPU, "fp32"),
            }  # fmt: skip
    text = as_markdown(result)
    print(text)
    if arguments.report:
        save_report(arguments.report, result, text)
        draw(result, arguments.report.with_name(arguments.report.name + ".png"))
    return 0


def make_repository(backbone: str, folder: Path) -> int:
    """Write the model repository of a network with random weights; return the side that it is tuned for."""
    config = recipe(backbone)
    torch.manual_seed(config.seed)
    model = ToCo(config.model).eval()
    artefact_folder(folder).mkdir(parents=True)
    path = artefact_folder(folder) / "model.onnx"
    export_onnx(ServedModel(exported_model(model)).eval(), path)
    profile = resolve_profile(ExportConfig(), model.config.image_size, model.patch_size)
    complete_repository(folder, describe_export(model, profile, [describe_artefact(path, "onnx", "fp32")], [], []))
    return model.config.image_size


class Bench:
    """The same network in this process and behind clients.

    Args:
        file: Its ONNX file.
        size: Side of the images that it is tuned for.
        clients: Of the server, one for each closed-loop client.
    """

    BATCH = 8

    def __init__(self, file: Path, size: int, clients: Sequence[Client]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._size, self._clients = size, clients
        self._image, self._batch = noise(1, size), noise(self.BATCH, size)
        self._photograph = _photograph()

    def one_at_a_time(self, repeats: int) -> dict[str, Any]:
        """Time single calls in turn."""
        client = self._clients[0]
        calls: dict[str, Callable[[], object]] = {
            "in process": lambda: self._run(self._image),
            "toco": lambda: client.segment_tensor(self._image),
            "decode": self._decode,
            "toco_image": lambda: client.segment(self._photograph),
        }
        for call in calls.values():
            warm_up(call, CPU, WARMUP_CALLS)
        seconds = interleaved(calls, CPU, repeats)
        alone, decode, toco = (np.array(seconds[name].values) for name in ("in process", "decode", "toco"))
        ratios = {
            "toco": seconds["toco"].over(seconds["in process"]),
            "toco_image": seconds["toco_image"].over(Series(tuple(alone + decode))),
        }
        return {
            "calls": {name: {"time_s": times.as_json(), "p90_s": times.percentile(90), "p99_s": times.percentile(99),
                             "seconds": times.values} for name, times in seconds.items()},
            "ratios": {name: ratio.as_json() for name, ratio in ratios.items()},
            "added_ms": 1e3 * Series(tuple(toco - alone)).median,
        }  # fmt: skip

    def loads(self, num_clients: Sequence[int], seconds: float) -> dict[str, Any]:
        """Put load on the server, of either kind, and see what the session does in batches."""
        calls = [lambda client=client: client.segment_tensor(self._image) for client in self._clients]
        closed = {str(number): closed_loop(calls[:number], seconds) for number in num_clients}
        batched = closed_loop([lambda: self._run(self._batch)], seconds).throughput * self.BATCH
        highest = max(load.throughput for load in closed.values())
        opened = {f"{share:.0%}": open_loop(calls[0], share * highest, seconds) for share in OPEN_LOADS}
        return {
            "closed_loop": {name: _figures(load) for name, load in closed.items()},
            "batched_images_per_second": batched,
            "share_of_batched": highest / batched,
            "open_loop": {name: _figures(load) for name, load in opened.items()},
        }

    def _run(self, images: Any) -> object:
        return self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: images})

    def _decode(self) -> object:
        """Do what ``toco_image`` does beside asking ``toco``."""
        with Image.open(io.BytesIO(self._photograph)) as image:
            small = image.convert("RGB").resize((self._size, self._size), Image.Resampling.BILINEAR)
        plane = small.convert("L")
        return [plane.resize(PHOTOGRAPH_SIDES, how) for how in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR)]


def _photograph() -> bytes:
    """Return a JPEG of coarse noise, which costs about as much to decode as a photograph."""
    width, height = PHOTOGRAPH_SIDES
    coarse = Image.fromarray(noise(1, 64)[0]).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    coarse.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _figures(load: Load) -> dict[str, Any]:
    return {"answers": len(load.latencies_s), "failures": load.failures, "images_per_second": load.throughput,
            "latency_s": Series(load.latencies_s).as_json() if load.latencies_s else None,
            **{f"p{percent}_ms": load.percentile_ms(percent) for percent in (50, 90, 99)}}  # fmt: skip


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the tables, with what they were measured on and how."""
    setting, alone = result["setting"], result["one_at_a_time"]
    ratios = {name: ratio_cell(found) for name, found in alone["ratios"].items()}
    single = [
        [name, f"{1e3 * found['time_s']['median']:.2f}", spread_cell(found["time_s"]), f"{1e3 * found['p90_s']:.2f}",
         f"{1e3 * found['p99_s']:.2f}", ratios.get(name, "")]
        for name, found in alone["calls"].items()
    ]  # fmt: skip
    headings = ("images/s", "p50, ms", "spread", "p90, ms", "p99, ms", "answers", "failures")
    width, height = PHOTOGRAPH_SIDES
    return "\n\n".join([
        f"# Serving: {setting['backbone']} at {setting['size']} px",
        provenance_text(result["provenance"]),
        "## One at a time",
        markdown_table(("call", "p50, ms", "spread", "p90, ms", "p99, ms", "ratio"), single),
        f"gRPC adds {alone['added_ms']:.2f} ms (median over rounds). The server was ready, its model warm, after "
        f"{result['ready_s']:.1f} s.",
        "## Closed loop, tensors by gRPC",
        markdown_table(("clients", *headings), _rows(result["closed_loop"])),
        f"In this process, in batches of {setting['batch']}: {result['batched_images_per_second']:.2f} images/s; "
        f"the server's best is {result['share_of_batched']:.2f} of that.",
        "## Open loop, tensors by gRPC",
        markdown_table(("load", *headings), _rows(result["open_loop"])),
        "## perf_analyzer",
        _second_opinion(result),
        METHOD.format(repeats=setting["repeats"], warmup=WARMUP_CALLS, threads=setting["threads"], width=width,
                      height=height, batch=setting["batch"], seconds=setting["seconds"]),
        SPREAD,
    ])  # fmt: skip


def _rows(loads: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [name, f"{load['images_per_second']:.2f}", f"{load['p50_ms']:.1f}",
         spread_cell(load["latency_s"]) if load["latency_s"] else "", f"{load['p90_ms']:.1f}", f"{load['p99_ms']:.1f}",
         str(load["answers"]), str(load["failures"])]
        for name, load in loads.items()
    ]  # fmt: skip


def _second_opinion(result: Mapping[str, Any]) -> str:
    """Return what perf_analyzer says of the closed loop beside what we do, or why it says nothing."""
    opinion = result["perf_analyzer"]
    if "reason" in opinion:
        return f"No second opinion: {opinion['reason']}."
    rows = [
        [number, *(f"{found[key]:.{digits}f}" for key, digits in (("images_per_second", 2), ("p50_ms", 1))
                   for found in (result["closed_loop"][number], theirs))]
        for number, theirs in opinion["clients"].items()
    ]  # fmt: skip
    headings = ("clients", "images/s, ours", "perf_analyzer", "p50 in ms, ours", "perf_analyzer")
    return markdown_table(headings, rows)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw throughput and latency over the number of closed-loop clients."""
    from matplotlib import pyplot as plt  # noqa: PLC0415  (after the backend is chosen)

    loads = result["closed_loop"]
    numbers = [int(name) for name in loads]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.plot(
        numbers, [load["images_per_second"] for load in loads.values()], marker="o", color="#0072b2", label="by gRPC"
    )
    left.axhline(result["batched_images_per_second"], color="#555555", linestyle="--",
                 label=f"in process, batches of {result['setting']['batch']}")  # fmt: skip
    highest = max(result["batched_images_per_second"], *(load["images_per_second"] for load in loads.values()))
    left.set(xlabel="clients", ylabel="images a second", ylim=(0, 1.1 * highest))
    for percent, colour, marker in ((50, "#0072b2", "o"), (90, "#e69f00", "s"), (99, "#d55e00", "^")):
        right.plot(numbers, [load[f"p{percent}_ms"] for load in loads.values()], marker=marker, color=colour,
                   label=f"p{percent}")  # fmt: skip
    right.set(xlabel="clients", ylabel="latency, ms", yscale="log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:,.0f}")
    right.yaxis.set_minor_locator(NullLocator())
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{result['setting']['backbone']}, {result['setting']['size']} px")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(run_command("serving")(main)(None))
