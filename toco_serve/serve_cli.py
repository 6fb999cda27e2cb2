"""``toco-serve``: serve a model repository on this machine."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from toco.command import CommandParser, run_command
from toco.manifest import MANIFEST_FILE
from toco_serve.ports import Ports
from toco_serve.server import EmbeddedTriton

MAX_CLASSES_SHOWN = 8


@run_command("toco-serve")
def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM, which are the ordinary ways to end it: status 0."""
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):  # a script's background job starts with SIGINT ignored
        signal.signal(number, _interrupt)
    console = Console()
    server = EmbeddedTriton(
        find_repository(arguments.repository),
        ports=Ports(arguments.grpc_port, arguments.http_port, arguments.metrics_port),
        ready_timeout_s=arguments.ready_timeout,
        log_file=arguments.log,
    )
    try:
        with console.status("starting Triton"):
            server.start()
        console.print(_panel(server))
        server.wait()
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        server.stop()
    return 0


def find_repository(folder: Path) -> Path:
    """Return a model repository itself, or the one that ``toco-export`` put into a run folder."""
    inside = folder / "repository"
    return inside if not (folder / MANIFEST_FILE).exists() and (inside / MANIFEST_FILE).exists() else folder


def _parser() -> CommandParser:
    """Describe the command line."""
    parser = CommandParser("toco-serve", "Serve a model repository with Triton on this machine (127.0.0.1 only).")
    parser.add_argument(
        "repository",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="REPOSITORY",
        help="model repository that toco-export wrote, or the run folder that it lies in",
    )
    for name, port in (("grpc", 8001), ("http", 8000), ("metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=int, default=port, metavar="PORT", help="0 for any free one")
    parser.add_argument("--ready-timeout", type=float, default=120.0, metavar="S", help="seconds that loading may take")
    parser.add_argument("--log", type=Path, metavar="FILE", help="where Triton's own log goes")
    return parser


def _interrupt(*_: object) -> NoReturn:
    """End as on Ctrl-C."""
    raise KeyboardInterrupt


def _panel(server: EmbeddedTriton) -> Panel:
    """Say what is served, where, and what to type next."""
    manifest = server.manifest
    shown = ", ".join(manifest.classes[:MAX_CLASSES_SHOWN])
    more = len(manifest.classes) - MAX_CLASSES_SHOWN
    table = Table.grid(padding=(0, 2))
    rows = {
        "model": f"{manifest.backbone}, {', '.join(f'{a.file} ({a.precision})' for a in manifest.artefacts)}",
        "classes": shown + (f" and {more} more" if more > 0 else ""),
        "gRPC": server.grpc_url,
        "HTTP": server.http_url,
        "metrics": server.metrics_url,
        "try": f"toco-predict IMAGE --url {server.grpc_url} --out masks",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return Panel(table, title=f"serving {server.repository}", subtitle="Ctrl-C stops it", expand=False)
