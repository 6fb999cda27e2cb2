"""The tables and the chart of a serving report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.harness.processes import in_words
from benchmarks.harness.provenance import provenance_text
from benchmarks.harness.timing import SPREAD, ratio_cell, spread_cell
from toco_core.text import markdown_table

METHOD = """\
Measured in {processes}, with a server for each. One at a time: the four calls take turns, {repeats} rounds in a process
after {warmup_calls} warm-up calls. in process: ONNX Runtime on {file}, the file that the server runs, with the same
options ({threads} threads, which sleep between calls), on the same device ({device}). toco: the same image as a tensor
by gRPC. decode: this process decodes a square JPEG of {photograph_side} px, resizes it to the network's size, and
resizes the answer back. toco_image: the same JPEG by gRPC.
Ratio: toco over in process, toco_image over in process + decode. Closed loop: each client sends its next image when the
last one is answered; batched: in this process, batches of {batch}. Open loop: images arrive at random (Poisson) at a
share of the highest closed-loop rate; latency counts from the arrival. {seconds:g} s each in a process; the clients use
the same processors as the server. images/s: the median of the processes, and their range. Under load, the rounds of the
spread are the answers, in their order. All images are noise. perf_analyzer: NVIDIA's tool, the same closed loop on the
first server, in windows of that length until three agree."""


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the tables of the report, with provenance and method."""
    setting, alone = result["setting"], result["one_at_a_time"]
    ratios = {name: ratio_cell(found) for name, found in alone["ratios"].items()}
    single = [
        [name, f"{1e3 * found['time_s']['median']:.2f}", spread_cell(found["time_s"]), f"{1e3 * found['p90_s']:.2f}",
         f"{1e3 * found['p99_s']:.2f}", ratios.get(name, "")]
        for name, found in alone["calls"].items()
    ]  # fmt: skip
    added, batched, share = alone["added_ms"], result["batched_images_per_second"], result["share_of_batched"]
    headings = ("images/s", "p50, ms", "spread", "p90, ms", "p99, ms", "answers", "failures")
    return "\n\n".join([
        f"# Serving: {setting['backbone']} at {setting['size']} px",
        provenance_text(result["provenance"]),
        "## One at a time",
        markdown_table(("call", "p50, ms", "spread", "p90, ms", "p99, ms", "ratio"), single),
        f"gRPC adds {added['median']:.2f} ms ({added['low']:.2f} to {added['high']:.2f}). The server was ready, its "
        f"model warm, after {result['ready_s']['median']:.1f} s.",
        "## Closed loop, tensors by gRPC",
        markdown_table(("clients", *headings), _rows(result["closed_loop"])),
        f"In this process, in batches of {setting['batch']}, before and after that: {ratio_cell(batched)} images/s; "
        f"the server's best is {ratio_cell(share)} of that.",
        "## Open loop, tensors by gRPC",
        markdown_table(("load", *headings), _rows(result["open_loop"])),
        "## perf_analyzer",
        _second_opinion(result),
        METHOD.format(**{**setting, "processes": in_words(setting["processes"])}),
        SPREAD,
    ])  # fmt: skip


def _rows(loads: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [name, ratio_cell(load["images_per_second"]), f"{load['p50_ms']:.1f}",
         spread_cell(load["latency_s"]) if load["latency_s"] else "", f"{load['p90_ms']:.1f}", f"{load['p99_ms']:.1f}",
         str(load["answers"]), str(load["failures"])]
        for name, load in loads.items()
    ]  # fmt: skip


def _second_opinion(result: Mapping[str, Any]) -> str:
    """Return perf_analyzer's figures of the closed loop beside ours, or why there are none."""
    opinion = result["perf_analyzer"]
    if "reason" in opinion:
        return f"No second opinion: {opinion['reason']}."
    rows = [
        [number, f"{ours['images_per_second']['median']:.2f}", f"{theirs['images_per_second']:.2f}",
         f"{ours['p50_ms']:.1f}", f"{theirs['p50_ms']:.1f}"]
        for number, theirs in opinion["clients"].items() for ours in (result["closed_loop"][number],)
    ]  # fmt: skip
    headings = ("clients", "images/s, ours", "perf_analyzer", "p50 in ms, ours", "perf_analyzer")
    return markdown_table(headings, rows)


def load_chart(result: Mapping[str, Any]) -> Figure:
    """Draw throughput and latency over the number of closed-loop clients.

    Args:
        result: The content of the report's JSON.
    """
    loads = result["closed_loop"]
    numbers = [int(name) for name in loads]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = [load["images_per_second"] for load in loads.values()]
    medians, batched = [rate["median"] for rate in rates], result["batched_images_per_second"]
    reach = [[rate["median"] - rate["low"] for rate in rates], [rate["high"] - rate["median"] for rate in rates]]
    left.errorbar(numbers, medians, reach, marker="o", color="#0072b2", capsize=3, label="by gRPC")
    left.axhline(batched["median"], color="#555555", linestyle="--",
                 label=f"in process, batches of {result['setting']['batch']}")  # fmt: skip
    left.axhspan(batched["low"], batched["high"], color="#555555", alpha=0.12, linewidth=0)
    highest = max(found["high"] for found in (batched, *rates))
    left.set(xlabel="clients", ylabel="images per second", ylim=(0, 1.1 * highest))
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
    return figure
