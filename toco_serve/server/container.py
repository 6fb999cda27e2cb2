"""The command that serves a model repository from NVIDIA's container, with minimal rights and open ports."""

from __future__ import annotations

import os
import shlex
from importlib.metadata import version
from pathlib import Path

from toco_core.errors import ServeError
from toco_core.manifest import Manifest, triton_image
from toco_serve.server.options import EXIT_TIMEOUT_S, arguments, hardened
from toco_serve.server.ports import LOOPBACK, Ports

RELEASE = "26.06"  # of Triton, unless an engine needs another
TRITON_USER = 1000  # "triton-server" in NVIDIA's image

MODELS, TLS = "/models", "/tls"
SERVER_CERTIFICATE, SERVER_KEY, CLIENTS_ROOT = CERTIFICATES = ("server.pem", "server.key", "ca.pem")


def commands(repository: Path, manifest: Manifest, ports: Ports, *, tls: Path | None, gpu: bool) -> str:
    """Return two shell commands: the first adds the models' packages to NVIDIA's image, the second runs it.

    Args:
        repository: The model repository, mounted read-only.
        manifest: Its manifest, for the versions of ONNX Runtime and TensorRT-RTX.
        ports: Ports of the host. HTTP (health) and metrics are open on its loopback address only.
        tls: Folder with ``server.pem`` and ``server.key``, and with ``ca.pem`` if clients must present a certificate
            signed by it. Without TLS, gRPC is open on the loopback address only, too.
        gpu: Whether the container gets the host's GPUs.

    Raises:
        ServeError: The folder lacks a file, or the image cannot load the repository's engine.
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
    """Return the release of Triton for a repository: an engine loads only in the TensorRT version that built it.

    Raises:
        ServeError: The engine was not built by the TensorRT of one of NVIDIA's images.
    """
    if manifest.backend == "tensorrt" and manifest.container is None:
        built = manifest.versions.get("tensorrt", "of an unknown version")
        raise ServeError(
            f"the engine was built by TensorRT {built} outside of NVIDIA's image, which loads only engines of its "
            f"own TensorRT; export again with --in-container {RELEASE}"
        )
    return manifest.container or RELEASE


def _image(release: str) -> str:
    return f"toco-triton:{release}-py3"


def _build(manifest: Manifest, release: str, *, gpu: bool) -> str:
    """Return the command that adds the packages which the models import to NVIDIA's image."""
    runtime, rtx = manifest.versions.get("onnxruntime"), manifest.versions.get("tensorrt_rtx")
    packages = [
        ("onnxruntime-gpu" if gpu else "onnxruntime") + (f"=={runtime}" if runtime else ""),
        f"pillow=={version('pillow')}",
        *([f"tensorrt-rtx-cu13=={rtx}"] if gpu and rtx and manifest.backend == "python" else []),
    ]
    steps = [f"FROM {triton_image(release)}", f"RUN pip install --no-cache-dir {' '.join(packages)}"]
    return "\n".join([f"docker build --tag {_image(release)} - <<'END'", *steps, "END"])


def _published(ports: Ports, *, encrypted: bool) -> str:
    """Map the host's ports to Triton's; only encrypted gRPC is open to other machines."""
    inside = Ports()
    grpc = f"{ports.grpc}:{inside.grpc}" if encrypted else f"{LOOPBACK}:{ports.grpc}:{inside.grpc}"
    http, metrics = (
        f"{LOOPBACK}:{outer}:{inner}" for outer, inner in ((ports.http, inside.http), (ports.metrics, inside.metrics))
    )
    return f"--publish {grpc} --publish {http} --publish {metrics}"


def _user() -> str:
    """Return the user that runs Triton: the caller, who can read repository and key, but never root."""
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else f"{TRITON_USER}:{TRITON_USER}"


def _mounted(path: Path, place: str) -> str:
    """Mount a folder or a file in the container, read-only."""
    return f"--volume {shlex.quote(f'{path.resolve()}:{place}:ro')}"
