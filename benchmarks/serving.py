"""What serving costs: masks by gRPC from a real Triton beside the same ONNX Runtime session in this process.

    python -m benchmarks.serving --backbone demo
    python -m benchmarks.serving --backbone vit_base_patch16_224 --report benchmarks/results/NAME

Weights are random. The server, its clients and the session share this machine's processors, and its GPU if it has one
that ONNX Runtime can use: then both run the fp16 file there.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from PIL import Image

from benchmarks.cases.backends import CPU, noise
from benchmarks.cases.recipe import add_network_arguments, recipe
from benchmarks.harness.load import Load, closed_loop, open_loop
from benchmarks.harness.peaks import gemm_peak
from benchmarks.harness.perf_analyzer import second_opinion
from benchmarks.harness.processes import Found, add_processes_argument, in_processes
from benchmarks.harness.provenance import provenance, save_report
from benchmarks.harness.timing import Series, interleaved, warm_up
from benchmarks.reports.serving import as_markdown, load_chart
from toco_core.charts import save_figure
from toco_core.cli import run_command
from toco_core.errors import TocoError
from toco_export.config import ExportConfig, resolve_profile
from toco_export.graph import INPUT_NAME, OUTPUT_NAMES, ServedModel, exported_model
from toco_export.onnx.file import export_onnx
from toco_export.onnx.fp16_bf16 import convert
from toco_export.pipeline.description import describe_artefact, describe_export
from toco_export.repository import artefact_folder, complete_repository
from toco_serve import Client, EmbeddedTriton, Ports
from toco_train.models.toco import ToCo

PHOTOGRAPH_SIDE = 1100  # square, so that toco_image asks for the very size that is timed in process
WARMUP_CALLS = 5
OPEN_LOADS = (0.5, 0.8, 0.95)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_arguments(parser)
    parser.add_argument("--repeats", type=int, default=50, help="rounds of one call each")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64], help="closed-loop clients")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each load")
    add_processes_argument(parser)
    parser.add_argument("--report", type=Path, help="write the tables there, as .json, .md and images")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the server would take a GPU
    origin = provenance(device, "benchmarks.serving", argv)  # first: the load average is that before our own
    origin["versions"] |= {"onnxruntime": onnxruntime.__version__}
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        size, file = make_repository(arguments.backbone, repository, device)
        setting = {"backbone": arguments.backbone, "size": size, "device": device.type, "file": file,
                   "repeats": arguments.repeats,
                   "clients": arguments.clients, "seconds": arguments.seconds, "processes": arguments.processes,
                   "threads": torch.get_num_threads(), "batch": Bench.BATCH, "warmup_calls": WARMUP_CALLS,
                   "photograph_side": PHOTOGRAPH_SIDE}  # fmt: skip
        for found in in_processes(arguments.processes, measure, repository, setting):
            result = {"provenance": origin, "setting": setting, **as_json(found)}
            if arguments.report:
                save_report(arguments.report, result, as_markdown(result))
    print(as_markdown(result))
    if arguments.report:
        save_figure(load_chart(result), arguments.report)
    return 0


def make_repository(backbone: str, folder: Path, device: torch.device) -> tuple[int, str]:
    """Write the model repository of a network with random weights.

    Returns:
        The side that it is tuned for, and the name of the ONNX file that is served on that device.
    """
    config = recipe(backbone)
    torch.manual_seed(config.seed)
    model = ToCo(config.model).eval()
    artefact_folder(folder).mkdir(parents=True)
    path = artefact_folder(folder) / "model.onnx"
    export_onnx(ServedModel(exported_model(model)).eval(), path)
    artefacts = [describe_artefact(path, "onnx", "fp32")]
    if device.type == "cuda":
        half = path.with_name("model.fp16.onnx")
        convert(model, "fp16", path, half, ranges={})
        artefacts.append(describe_artefact(half, "onnx", "fp16"))
    profile, sizes = resolve_profile(ExportConfig(), model.patch_size, model.sizes)
    complete_repository(folder, describe_export(model, profile, artefacts, [], [], sizes=sizes))
    return model.config.image_size, artefacts[-1].file


def measure(repository: Path, setting: Mapping[str, Any]) -> Iterator[Found]:
    """Serve a repository and give all that there is to measure, once."""
    size, seconds, numbers = setting["size"], setting["seconds"], setting["clients"]
    with ExitStack() as stack:
        began = time.perf_counter()
        triton = stack.enter_context(EmbeddedTriton(repository, ports=Ports(0, 0, 0)))
        ready_s = time.perf_counter() - began
        clients = [stack.enter_context(Client(triton.grpc_url)) for _ in range(max(numbers))]
        bench = Bench(artefact_folder(repository) / setting["file"], size, clients, torch.device(setting["device"]))
        yield {
            "ready_s": Series((ready_s,)),
            "one_at_a_time": bench.one_at_a_time(setting["repeats"]),
            **bench.loads(numbers, seconds),
            "perf_analyzer": second_opinion(triton.grpc_url, size, sorted({min(numbers), max(numbers)}), seconds),
            "gemm_flops_per_second": [gemm_peak(CPU, "fp32")],
        }


class Bench:
    """The same network in this process and behind clients.

    Args:
        file: Its ONNX file.
        size: Side of the images that it is tuned for.
        clients: Of the server, one for each closed-loop client.
        device: Where the session runs.

    Raises:
        TocoError: ONNX Runtime cannot use the GPU.
    """

    BATCH = 8

    def __init__(self, file: Path, size: int, clients: Sequence[Client], device: torch.device) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        self._session = onnxruntime.InferenceSession(str(file), options, providers=[wanted])
        if wanted not in self._session.get_providers():
            raise TocoError("ONNX Runtime cannot use the GPU; give --device cpu")
        self._size, self._clients = size, clients
        self._image, self._batch = noise(1, size), noise(self.BATCH, size)
        self._photograph = _photograph()

    def one_at_a_time(self, repeats: int) -> dict[str, Series]:
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
        return interleaved(calls, CPU, repeats)

    def loads(self, num_clients: Sequence[int], seconds: float) -> Found:
        """Put load on the server, of either kind, and see what the session does in batches."""
        calls = [lambda client=client: client.segment_tensor(self._image) for client in self._clients]
        before = self._batched(seconds)
        closed = {str(number): closed_loop(calls[:number], seconds) for number in num_clients}
        batched = (before + self._batched(seconds)) / 2
        highest = max(load.throughput for load in closed.values())
        opened = {f"{share:.0%}": open_loop(calls[0], share * highest, seconds) for share in OPEN_LOADS}
        return {
            "closed_loop": {name: _raw(load) for name, load in closed.items()},
            "batched_images_per_second": Series((batched,)),
            "share_of_batched": Series((highest / batched,)),
            "open_loop": {name: _raw(load) for name, load in opened.items()},
        }

    def _batched(self, seconds: float) -> float:
        """Return the images a second of batches in this process."""
        return closed_loop([lambda: self._run(self._batch)], seconds).throughput * self.BATCH

    def _run(self, images: Any) -> object:
        return self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: images})

    def _decode(self) -> object:
        """Do what ``toco_image`` does beside asking ``toco``."""
        with Image.open(io.BytesIO(self._photograph)) as image:
            small = image.convert("RGB").resize((self._size, self._size), Image.Resampling.BILINEAR)
        plane = small.convert("L")
        return [
            plane.resize((PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE), how)
            for how in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR)
        ]


def _photograph() -> bytes:
    """Return a JPEG of coarse noise, which costs about as much to decode as a photograph."""
    coarse = Image.fromarray(noise(1, 64)[0]).resize((PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    coarse.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _raw(load: Load) -> Found:
    """Return what several processes can merge of a load."""
    return {"latency": Series(load.latencies_s), "rate": Series((load.throughput,)), "failures": [load.failures]}


def as_json(found: Found) -> dict[str, Any]:
    """Return what a report holds of what one process found, or several."""
    seconds: Mapping[str, Series] = found["one_at_a_time"]
    alone, decode, toco = (seconds[name].values for name in ("in process", "decode", "toco"))
    turns = seconds["toco"].turns
    both = Series(tuple(map(sum, zip(alone, decode, strict=True))), turns)
    ratios = {"toco": seconds["toco"].over(seconds["in process"]), "toco_image": seconds["toco_image"].over(both)}
    added_ms = Series(tuple(1e3 * (served - here) for served, here in zip(toco, alone, strict=True)), turns)
    return {
        **found,
        "ready_s": found["ready_s"].as_json(),
        "one_at_a_time": {
            "calls": {name: {"time_s": times.as_json(), "p90_s": times.percentile(90), "p99_s": times.percentile(99),
                             "seconds": times.values} for name, times in seconds.items()},
            "ratios": {name: ratio.as_json() for name, ratio in ratios.items()},
            "added_ms": added_ms.as_json(),
        },
        **{kind: {name: _figures(load) for name, load in found[kind].items()} for kind in ("closed_loop", "open_loop")},
        **{name: found[name].as_json() for name in ("batched_images_per_second", "share_of_batched")},
    }  # fmt: skip


def _figures(load: Found) -> dict[str, Any]:
    latency: Series = load["latency"]
    return {"answers": len(latency.values), "failures": sum(load["failures"]),
            "images_per_second": load["rate"].as_json(), "latency_s": latency.as_json() if latency.values else None,
            **{f"p{percent}_ms": 1e3 * latency.percentile(percent) for percent in (50, 90, 99)}}  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command("serving")(main)(None))
