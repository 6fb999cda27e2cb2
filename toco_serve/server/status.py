"""The status of a running Triton: readiness, queue, throughput and latency of each model."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass

from toco_serve.server.http import get, no_triton, responds
from toco_serve.server.ports import Ports

Samples = dict[tuple[str, str], dict[str, float]]


@dataclass(frozen=True)
class ModelStatus:
    """One version of one model.

    Attributes:
        name: The model.
        version: Its version.
        ready: Whether it accepts requests.
        waiting: Requests in its queue.
        requests: Requests answered since the model was loaded.
        failed: Requests that failed since then, refused and cancelled ones included.
        images_per_s: Images per second during the watched time.
        latency_p50_ms: Median time of a request in the server over about the last minute; None without requests.
        latency_p99_ms: 99th percentile of the same.
    """

    name: str
    version: str
    ready: bool
    waiting: int
    requests: int
    failed: int
    images_per_s: float
    latency_p50_ms: float | None
    latency_p99_ms: float | None


@dataclass(frozen=True)
class ServerStatus:
    """A server and its models."""

    version: str
    ready: bool
    models: tuple[ModelStatus, ...]


def server_status(ports: Ports, watched_s: float) -> ServerStatus:
    """Ask a Triton of this machine for its status.

    Args:
        ports: Its ports for HTTP and metrics.
        watched_s: Time over which the throughput is measured, in seconds.

    Raises:
        UnreachableError: No Triton answers at one of the ports.
    """
    version = _server_version(ports)
    before, begun = _samples(ports), time.monotonic()
    time.sleep(watched_s)
    after, passed_s = _samples(ports), time.monotonic() - begun
    models = tuple(_model_status(key, before.get(key, {}), after[key], passed_s, ports) for key in sorted(after))
    return ServerStatus(version, responds(ports.http, "/v2/health/ready"), models)


def _server_version(ports: Ports) -> str:
    try:
        return str(json.loads(get(ports.http, "/v2"))["version"])
    except (ValueError, KeyError, TypeError) as error:  # the answer of another program
        raise no_triton(ports.http) from error


def _model_status(
    key: tuple[str, str], before: dict[str, float], after: dict[str, float], passed_s: float, ports: Ports
) -> ModelStatus:
    """Return the status of one version of a model, from its metrics before and after the watched time."""
    name, version = key
    done = after.get("nv_inference_count_total", 0) - before.get("nv_inference_count_total", 0)
    return ModelStatus(
        name=name,
        version=version,
        ready=responds(ports.http, f"/v2/models/{name}/versions/{version}/ready"),
        waiting=int(after.get("nv_inference_pending_request_count", 0)),
        requests=int(after.get("nv_inference_request_success_total", 0)),
        failed=int(after.get("nv_inference_request_failure_total", 0)),
        images_per_s=done / passed_s,
        latency_p50_ms=_milliseconds(after.get("nv_inference_request_summary_us 0.5")),
        latency_p99_ms=_milliseconds(after.get("nv_inference_request_summary_us 0.99")),
    )


def _milliseconds(microseconds: float | None) -> float | None:
    """Convert a quantile; Triton gives NaN if there were no requests."""
    return None if microseconds is None or math.isnan(microseconds) else microseconds / 1e3


def _samples(ports: Ports) -> Samples:
    """Return the metrics of each version of each model by name, summed over other labels such as the failure's reason.

    A quantile's name ends in it: ``nv_inference_request_summary_us 0.5``. The parser adds ``_total`` to counters.
    """
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  (only this command needs it)

    try:
        families = list(text_string_to_metric_families(get(ports.metrics, "/metrics")))
    except ValueError as error:  # the answer of another program
        raise no_triton(ports.metrics) from error
    models: Samples = defaultdict(lambda: defaultdict(float))
    for sample in (sample for family in families for sample in family.samples):
        if "model" in sample.labels:
            quantile = sample.labels.get("quantile")
            name = f"{sample.name} {quantile}" if quantile else sample.name
            models[sample.labels["model"], sample.labels["version"]][name] += sample.value
    return models
