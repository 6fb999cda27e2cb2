import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from toco_serve.errors import UnreachableError
from toco_serve.server.http import get, responds
from toco_serve.server.ports import Ports
from toco_serve.server.status import server_status

PAGES = {"/": b"<p>another program</p>", "/v2": b"[]", "/metrics": b"not metrics {"}


class OtherProgram(BaseHTTPRequestHandler):
    """A web server that is not Triton."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path in PAGES else 400)
        self.end_headers()
        self.wfile.write(PAGES.get(self.path, b"no such page"))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), OtherProgram) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_request_past_any_proxy_gives_the_page(port, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert get(port, "/") == "<p>another program</p>"
    assert responds(port, "/")


def test_a_page_that_is_refused_counts_as_no_answer(port):
    assert not responds(port, "/v2/health/ready")
    with pytest.raises(UnreachableError, match=f"no server answers at 127.0.0.1:{port}: start one with toco-serve"):
        get(port, "/v2/health/ready")


@pytest.mark.parametrize("number", [1, 70_000])
def test_a_port_where_nothing_listens_or_that_does_not_exist_gives_no_answer(number):
    assert not responds(number, "/")
    with pytest.raises(UnreachableError, match=f"no server answers at 127.0.0.1:{number}"):
        get(number, "/")


@pytest.mark.parametrize("version", [b"<p>hello</p>", b"[]", b"{}"])
def test_the_status_of_another_program_is_refused(port, monkeypatch, version):
    monkeypatch.setitem(PAGES, "/v2", version)
    with pytest.raises(UnreachableError, match=f"no server answers at 127.0.0.1:{port}"):
        server_status(Ports(0, port, port), 0.0)


def test_metrics_of_another_program_are_refused(port, monkeypatch):
    monkeypatch.setitem(PAGES, "/v2", b'{"version": "2.51.0"}')
    with pytest.raises(UnreachableError, match=f"no server answers at 127.0.0.1:{port}"):
        server_status(Ports(0, port, port), 0.0)


def test_counters_are_summed_over_their_reasons_and_a_quantile_without_requests_is_none(port, monkeypatch):
    model = 'model="toco",version="1"'
    metrics = f"""\
# TYPE nv_inference_request_success counter
nv_inference_request_success{{{model}}} 7
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{{{model},reason="REJECTED"}} 2
nv_inference_request_failure{{{model},reason="CANCELED"}} 1
# TYPE nv_inference_count counter
nv_inference_count{{{model}}} 9
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{{{model}}} 4
# TYPE nv_inference_request_summary_us summary
nv_inference_request_summary_us{{{model},quantile="0.5"}} 1500
nv_inference_request_summary_us{{{model},quantile="0.99"}} Nan
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.5
"""
    monkeypatch.setitem(PAGES, "/v2", b'{"version": "2.51.0"}')
    monkeypatch.setitem(PAGES, "/metrics", metrics.encode())
    status = server_status(Ports(0, port, port), 0.0)
    (toco,) = status.models
    assert (status.version, status.ready) == ("2.51.0", False)
    assert (toco.name, toco.version, toco.ready) == ("toco", "1", False)
    assert (toco.requests, toco.failed, toco.waiting, toco.images_per_s) == (7, 3, 4, 0)
    assert (toco.latency_p50_ms, toco.latency_p99_ms) == (1.5, None)
