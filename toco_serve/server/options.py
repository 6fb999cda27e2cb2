"""Triton's command line: no control by clients, nothing completed by guessing, answers before it ends."""

from __future__ import annotations

import secrets
from pathlib import Path

from toco_serve.server.ports import LOOPBACK, Ports

EXIT_TIMEOUT_S = 20

# Nothing here needs these, and a client could read or change the server through them: the key is known to nobody.
RESTRICTED = "model-repository,trace,logging"
SHARED_MEMORY = "shared-memory"


def hardened(ports: Ports, *, shared_memory: bool = False) -> dict[str, object]:
    """Return the options that every server gets, embedded or not; clients by gRPC alone may share memory."""
    key = f"toco-admin={secrets.token_hex(16)}"
    restricted = f"{RESTRICTED},{SHARED_MEMORY}:{key}"
    return {
        "disable-auto-complete-config": None,
        "model-control-mode": "none",
        "strict-readiness": "true",
        "exit-timeout-secs": EXIT_TIMEOUT_S,
        "http-port": ports.http,
        "http-restricted-api": restricted,
        "grpc-port": ports.grpc,
        "grpc-restricted-protocol": f"{RESTRICTED}:{key}" if shared_memory else restricted,
        "metrics-port": ports.metrics,
        "metrics-config": "summary_latencies=true",
    }


def embedded_arguments(
    repository: Path, ports: Ports, backends: Path, shm_prefix: str, *, shared_memory: bool
) -> list[str]:
    """Return the arguments of a server of this machine: loopback only.

    It shares its ports for gRPC and HTTP with a successor (``EmbeddedTriton.roll_out``); that they are free otherwise
    is seen to before.
    """
    options = {
        **hardened(ports, shared_memory=shared_memory),
        "model-repository": repository.resolve(),
        "backend-directory": backends,
        "backend-config": f"python,shm-region-prefix-name={shm_prefix}",
        "http-address": LOOPBACK,
        "reuse-http-port": "true",
        "grpc-address": LOOPBACK,
        "reuse-grpc-port": "true",
        "metrics-address": LOOPBACK,
    }
    return arguments(options)


def arguments(options: dict[str, object]) -> list[str]:
    """Write options as Triton takes them; those without a value are switches."""
    return [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]
