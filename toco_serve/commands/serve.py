"""``toco-serve``: serve a model repository on this machine, and show the status of a server."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from toco_core.cli import CommandParser, print_error, run_command
from toco_core.errors import ServeError
from toco_core.manifest import MANIFEST_FILE, read_manifest
from toco_core.text import listed
from toco_serve.server.container import commands
from toco_serve.server.embedded import EmbeddedTriton
from toco_serve.server.ports import LOOPBACK, Ports
from toco_serve.server.status import ServerStatus, server_status

PROG = "toco-serve"
EXIT_NOT_READY = 1
MAX_CLASSES_SHOWN = 8
POLL_S = 0.5


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM (status 0), or show the status of a running server."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["status"]:
        return show_status(_status_parser().parse_args(given[1:]))
    arguments = _parser().parse_args(given)
    repository = find_repository(arguments.repository)
    if arguments.docker:
        if arguments.shared_memory:
            raise ServeError("--shared-memory goes without --docker: a container has memory of its own; leave it out")
        text = commands(
            repository, read_manifest(repository), _ports(arguments), tls=arguments.tls, gpu=arguments.docker == "gpu"
        )
        Console().print(text, markup=False, highlight=False, soft_wrap=True)
        return 0
    _refuse_networks(arguments)
    return serve(repository, arguments)


def serve(repository: Path, arguments: argparse.Namespace) -> int:
    """Serve a repository; SIGHUP replaces the served models by those in the repository."""
    for number in (signal.SIGTERM, signal.SIGINT):  # a script's background job starts with SIGINT ignored
        signal.signal(number, _interrupt)
    renewal = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: renewal.set())
    console = Console()
    server = EmbeddedTriton(
        repository,
        ports=_ports(arguments),
        ready_timeout_s=arguments.ready_timeout,
        log_file=arguments.log,
        shared_memory=arguments.shared_memory,
    )
    try:
        with console.status("starting Triton"):
            server.start()
        console.print(_panel(server))
        while True:
            server.wait(POLL_S)
            if renewal.is_set():
                renewal.clear()
                _renew(server, console)
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        server.stop()
    return 0


def show_status(arguments: argparse.Namespace) -> int:
    """Print the status of a running server and its models; return 1 if it is not ready."""
    ports = Ports(http=arguments.http_port, metrics=arguments.metrics_port)
    status = server_status(ports, arguments.watch)
    if arguments.json:
        Console().print(json.dumps(dataclasses.asdict(status)), markup=False, highlight=False, soft_wrap=True)
    else:
        Console().print(_status_table(status))
    return 0 if status.ready and all(model.ready for model in status.models) else EXIT_NOT_READY


def find_repository(folder: Path) -> Path:
    """Return a model repository itself, or the one that ``toco-export`` put into a run folder."""
    inside = folder / "repository"
    return inside if not (folder / MANIFEST_FILE).exists() and (inside / MANIFEST_FILE).exists() else folder


def _renew(server: EmbeddedTriton, console: Console) -> None:
    """Serve the models that are in the repository now; if that fails, keep the current ones."""
    try:
        with console.status("starting Triton on the new models"):
            server.roll_out()
    except ServeError as error:
        print_error(PROG, f"{error}; the current models stay in service")
    else:
        console.print(_panel(server))


def _refuse_networks(arguments: argparse.Namespace) -> None:
    """Refuse options that are for networks."""
    if arguments.host not in {LOOPBACK, "localhost"}:
        raise ServeError(
            f"the Triton of nvidia-pytriton lacks the security fixes since release 24.10 and serves {LOOPBACK} only, "
            f"not {arguments.host}; for a network run what {PROG} --docker prints"
        )
    if arguments.tls:
        raise ServeError(f"--tls goes with --docker: on {LOOPBACK} nothing is encrypted; leave it out")


def _ports(arguments: argparse.Namespace) -> Ports:
    """Return the ports that were given."""
    return Ports(arguments.grpc_port, arguments.http_port, arguments.metrics_port)


def _parser() -> CommandParser:
    """Describe the command line."""
    description = (
        f"Serve a model repository with Triton on this machine ({LOOPBACK} only). '{PROG} status' shows the status of "
        "a running server. SIGHUP replaces the models by those now in the repository; SIGTERM finishes the current "
        "requests and stops."
    )
    parser = CommandParser(PROG, description)
    parser.add_argument(
        "repository",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="REPOSITORY",
        help="model repository that toco-export wrote, or the run folder that it is in",
    )
    parser.add_argument(
        "--host", default=LOOPBACK, metavar="ADDRESS", help="address to listen on; all others are refused"
    )
    for name, port in (("grpc", 8001), ("http", 8000), ("metrics", 8002)):
        parser.add_argument(
            f"--{name}-port", type=int, default=port, metavar="PORT", help="port to listen on; 0: any free one"
        )
    parser.add_argument(
        "--ready-timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="longest time for loading the models, in seconds",
    )
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="file for Triton's own log; the previous one becomes FILE.1"
    )
    sharing = "accept tensors in shared memory from programs on this machine"
    parser.add_argument("--shared-memory", action="store_true", help=sharing)
    container = "print the commands that serve from NVIDIA's container, for production, and exit"
    parser.add_argument("--docker", nargs="?", choices=("gpu", "cpu"), const="gpu", help=container)
    certificates = (
        "with --docker: folder with server.pem and server.key, and with ca.pem to ask clients for certificates"
    )
    parser.add_argument("--tls", type=Path, metavar="DIR", help=certificates)
    return parser


def _status_parser() -> CommandParser:
    """Describe the command line of ``toco-serve status``."""
    parser = CommandParser(
        f"{PROG} status", "Show the status of a server on this machine; exits with status 1 if it is not ready."
    )
    for name, port in (("http", 8000), ("metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=int, default=port, metavar="PORT", help="port that it listens on")
    parser.add_argument(
        "--watch",
        type=float,
        default=1.0,
        metavar="S",
        help="time over which images per second are measured, in seconds",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _interrupt(*_: object) -> NoReturn:
    """End as on Ctrl-C."""
    raise KeyboardInterrupt


def _status_table(status: ServerStatus) -> Table:
    """Return a status as a table."""
    title = f"Triton {status.version}: {'ready' if status.ready else 'not ready'}"
    table = Table(title=title, box=None, padding=(0, 2, 0, 0))
    for column in ("model", "ver.", "ready", "waiting", "answered", "failed", "images/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in status.models:
        latencies = ("-" if ms is None else f"{ms:.1f}" for ms in (model.latency_p50_ms, model.latency_p99_ms))
        counts = (model.waiting, model.requests, model.failed)
        ready = "yes" if model.ready else "no"
        table.add_row(model.name, model.version, ready, *map(str, counts), f"{model.images_per_s:.1f}", *latencies)
    return table


def _panel(server: EmbeddedTriton) -> Panel:
    """Return what is served, where, and what to type next."""
    manifest = server.manifest
    table = Table.grid(padding=(0, 2))
    rows = {
        "model": f"{manifest.backbone}, {', '.join(f'{a.file} ({a.precision})' for a in manifest.artefacts)}",
        "classes": listed(manifest.classes, MAX_CLASSES_SHOWN),
        "gRPC": server.grpc_url,
        "HTTP": server.http_url,
        "metrics": server.metrics_url,
        "try": f"toco-predict IMAGE --url {server.grpc_url} --out masks",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return Panel(table, title=f"serving {server.repository}", subtitle="Ctrl-C stops it", expand=False)
