"""The command that serves a model repository from NVIDIA's container: as few rights and open doors as it needs."""

from __future__ import annotations

import os
import shlex
from importlib.metadata import version
from pathlib import Path

from toco_core.errors import ServeError
from toco_core.manifest import Manifest, triton_image
from toco_serve.server.options import EXIT_TIMEOUT_S, arguments, hardened
from toco_serve.server.ports import LOOPBACK, Ports

RELEASE = "26.06"  # of Triton, where no engine asks for another
TRITON_USER = 1000  # "triton-server" in NVIDIA's image

MODELS, TLS = "/models", "/tls"
SERVER_CERTIFICATE, SERVER_KEY, CLIENTS_ROOT = CERTIFICATES = ("server.pem", "server.key", "ca.pem")


def commands(repository: Path, manifest: Manifest, ports: Ports, *, tls: Path | None, gpu: bool) -> str:
    """Return shell commands: one that adds to NVIDIA's image what the models import, and one that runs it.

    Args:
        repository: The model repository, mounted read-only.
        manifest: Its manifest, for the versions of ONNX Runtime and TensorRT-RTX.
        ports: Where the host listens. HTTP (health) and metrics on its loopback address only.
        tls: Folder with ``server.pem`` and ``server.key``, and ``ca.pem`` if clients have to show a certificate that it
            signed. Without TLS gRPC too stays on the loopback address.
        gpu: Whether the container gets the host's GPUs.

    Raises:
        ServeError: The folder lacks a file, or the image would not load the repository's engine.
    """
    release = _release(manifest)
    run = [
        f"docker run --rm --name toco{' --gpus all' if gpu else ''}",
        f"--user {_user()} --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges",
        f"--shm-size 1g --pids-limit 2048 --stop-timeout {EXIT_TIMEOUT_S + 10}",
        _published(ports, encrypted=tls is not None),
        _mounted(repository, MODELS),
        *(_mounted(tls / name, f"{TLS}/{name}") for name in CERTIFICATES if tls and (tls / name).is_file()),
        f"{_image(release)} tritonserver",
        *map(shlex.quote, container_arguments(tls)),
    ]
    return _build(manifest, release, gpu=gpu) + "\n" + " \\\n  ".join(run)


def container_arguments(tls: Path | None) -> list[str]:
    """Return Triton's arguments inside the container.

    Raises:
        ServeError: The folder of certificates lacks one.
    """
    options = {"model-repository": MODELS, **hardened(Ports())}
    if tls is not None:
        for name in (SERVER_CERTIFICATE, SERVER_KEY):
            if not (tls / name).is_file():
                raise ServeError(f"{tls} holds no {name}; put the server's certificate there as {SERVER_CERTIFICATE} "
                                 f"and its key as {SERVER_KEY}")  # fmt: skip
        options |= {"grpc-server-cert": f"{TLS}/{SERVER_CERTIFICATE}", "grpc-server-key": f"{TLS}/{SERVER_KEY}"}
        if (tls / CLIENTS_ROOT).is_file():
            options |= {"grpc-use-ssl-mutual": "true", "grpc-root-cert": f"{TLS}/{CLIENTS_ROOT}"}
        else:
            options |= {"grpc-use-ssl": "true"}
    return arguments(options)


def _release(manifest: Manifest) -> str:
    """Return which release of Triton serves a repository: an engine loads only in the TensorRT that built it.

    Raises:
        ServeError: It was built by another TensorRT than an image's own.
    """
    if manifest.backend == "tensorrt" and manifest.container is None:
        built = manifest.versions.get("tensorrt", "of an unknown version")
        raise ServeError(
            f"the engine was built by TensorRT {built} outside of NVIDIA's image, which loads only what its own "
            f"TensorRT built; export again with --in-container {RELEASE}"
        )
    return manifest.container or RELEASE


def _image(release: str) -> str:
    return f"toco-triton:{release}-py3"


def _build(manifest: Manifest, release: str, *, gpu: bool) -> str:
    """Add to NVIDIA's image the packages that the models import and it has not."""
    runtime, rtx = manifest.versions.get("onnxruntime"), manifest.versions.get("tensorrt_rtx")
    packages = [
        ("onnxruntime-gpu" if gpu else "onnxruntime") + (f"=={runtime}" if runtime else ""),
        f"pillow=={version('pillow')}",
        *([f"tensorrt-rtx-cu13=={rtx}"] if gpu and rtx and manifest.backend == "python" else []),
    ]
    steps = [f"FROM {triton_image(release)}", f"RUN pip install --no-cache-dir {' '.join(packages)}"]
    return "\n".join([f"docker build --tag {_image(release)} - <<'END'", *steps, "END"])


def _published(ports: Ports, *, encrypted: bool) -> str:
    """Let the host's ports lead to Triton's; only an encrypted one is seen from other machines."""
    inside = Ports()
    grpc = f"{ports.grpc}:{inside.grpc}" if encrypted else f"{LOOPBACK}:{ports.grpc}:{inside.grpc}"
    http, metrics = (
        f"{LOOPBACK}:{outer}:{inner}" for outer, inner in ((ports.http, inside.http), (ports.metrics, inside.metrics))
    )
    return f"--publish {grpc} --publish {http} --publish {metrics}"


def _user() -> str:
    """Return who runs Triton: the caller, whom the repository and the key are readable for, but never root."""
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else f"{TRITON_USER}:{TRITON_USER}"


def _mounted(path: Path, place: str) -> str:
    """Show a folder or a file in the container, read-only."""
    return f"--volume {shlex.quote(f'{path.resolve()}:{place}:ro')}"
