"""What a running Triton says of its models: readiness, queue, throughput, latency."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import dataclass

from toco_serve.errors import UnreachableError
from toco_serve.server.ports import LOOPBACK, Ports

TIMEOUT_S = 5.0

_SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

Samples = dict[tuple[str, str], dict[str, float]]


@dataclass(frozen=True)
class ModelStatus:
    """One version of one model.

    Attributes:
        name: The model.
        version: Its version.
        ready: Whether it takes requests.
        waiting: Requests in its queue.
        requests: Requests answered since it was loaded.
        failed: Requests that failed since, those that were refused or given up among them.
        images_per_s: Inferences a second, over the time that was watched.
        latency_p50_ms: Median time of a request in the server, of those of the last minute or so; None where there
            were none.
        latency_p99_ms: Time that one in a hundred exceeded.
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
    """Ask a Triton of this machine, and watch it for a while to see its throughput.

    Args:
        ports: Where it listens for HTTP and gives its metrics.
        watched_s: How long to watch, in seconds.

    Raises:
        UnreachableError: Nobody answers at one of the ports.
    """
    described = _get(ports.http, "/v2")
    found = re.search(r'"version":"([^"]*)"', described)
    before, begun = _samples(ports), time.monotonic()
    time.sleep(watched_s)
    after, passed_s = _samples(ports), time.monotonic() - begun
    models = tuple(_model_status(key, before.get(key, {}), after[key], passed_s, ports) for key in sorted(after))
    return ServerStatus(found[1] if found else "unknown", _says_ready(ports, "/v2/health/ready"), models)


def _model_status(
    key: tuple[str, str], before: dict[str, float], after: dict[str, float], passed_s: float, ports: Ports
) -> ModelStatus:
    """Read one model's numbers."""
    name, version = key
    done = after.get("nv_inference_count", 0) - before.get("nv_inference_count", 0)
    return ModelStatus(
        name=name,
        version=version,
        ready=_says_ready(ports, f"/v2/models/{name}/versions/{version}/ready"),
        waiting=int(after.get("nv_inference_pending_request_count", 0)),
        requests=int(after.get("nv_inference_request_success", 0)),
        failed=int(after.get("nv_inference_request_failure", 0)),
        images_per_s=done / passed_s,
        latency_p50_ms=_milliseconds(after.get("nv_inference_request_summary_us 0.5")),
        latency_p99_ms=_milliseconds(after.get("nv_inference_request_summary_us 0.99")),
    )


def _milliseconds(microseconds: float | None) -> float | None:
    """Convert a quantile; NaN stands for one of nothing."""
    return None if microseconds is None or microseconds != microseconds else microseconds / 1e3  # noqa: PLR0124 (NaN)


def _samples(ports: Ports) -> Samples:
    """Return the metrics of each version of each model: quantiles by ``name quantile``, failures of any reason."""
    models: Samples = defaultdict(lambda: defaultdict(float))
    for sample in _SAMPLE.finditer(_get(ports.metrics, "/metrics")):
        labels = dict(_LABEL.findall(sample["labels"]))
        if "model" in labels:
            name = f"{sample['name']} {labels['quantile']}" if "quantile" in labels else sample["name"]
            models[labels["model"], labels["version"]][name] += float(sample["value"])
    return models


def _says_ready(ports: Ports, path: str) -> bool:
    """Tell whether a question for readiness is answered with yes."""
    try:
        _get(ports.http, path)
    except urllib.error.HTTPError:
        return False
    return True


def _get(port: int, path: str) -> str:
    """Ask a server of this machine, past any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{LOOPBACK}:{port}{path}", timeout=TIMEOUT_S) as reply:
            return str(reply.read().decode())
    except urllib.error.HTTPError:
        raise
    except OSError as error:
        raise UnreachableError(
            f"no server answers at {LOOPBACK}:{port}: start one with toco-serve, or give --http-port and "
            "--metrics-port of one that runs"
        ) from error
