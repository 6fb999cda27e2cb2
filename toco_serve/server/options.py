"""Triton's command line: clients cannot control the server, configurations are complete, requests finish at the end."""

from __future__ import annotations

import secrets
from pathlib import Path

from toco_serve.server.ports import LOOPBACK, Ports

EXIT_TIMEOUT_S = 20

# Nothing here uses these APIs, and clients could read or change the server through them: nobody knows the key.
RESTRICTED = "model-repository,trace,logging"
SHARED_MEMORY = "shared-memory"


def hardened(ports: Ports, *, shared_memory: bool = False) -> dict[str, object]:
    """Return the options of every server, embedded or not; shared memory is for gRPC clients only."""
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
    """Return the arguments of an embedded server, on the loopback address only.

    It shares its gRPC and HTTP ports with its successor (``EmbeddedTriton.roll_out``). The caller checks that they are
    free otherwise.
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
    """Return options as command-line arguments; None stands for a switch without a value."""
    return [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]
