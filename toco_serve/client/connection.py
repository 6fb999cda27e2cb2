"""The gRPC channel to a server: address, message sizes, reconnecting, TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toco_core.errors import ConfigError

DEFAULT_URL = "localhost:8001"

_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True)
class Tls:
    """PEM files for an encrypted connection.

    Attributes:
        root_certificates: Certificates that may sign the server's; None: those of the system.
        private_key: The client's key, if the server asks for a client certificate (mTLS).
        certificate_chain: The client's certificate; needed together with the key.
    """

    root_certificates: str | Path | None = None
    private_key: str | Path | None = None
    certificate_chain: str | Path | None = None


def channel_arguments(url: str, tls: Tls | None) -> dict[str, Any]:
    """Return the constructor arguments of tritonclient's gRPC clients for a server at ``url``.

    Raises:
        ConfigError: A file of ``tls`` cannot be read, or only one of key and certificate is given.
    """
    arguments: dict[str, Any] = {"url": url, "channel_args": _options(url)}
    return arguments if tls is None else {**arguments, "creds": _credentials(tls)}


def _options(url: str) -> list[tuple[str, int]]:
    """Allow messages of any size, reconnect quickly to a restarted server, bypass HTTP proxies for this machine."""
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),  # by default a second, growing to two minutes
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    return [*options, ("grpc.enable_http_proxy", 0)] if url.rpartition(":")[0] in _LOCAL_HOSTS else options


def _credentials(tls: Tls) -> Any:
    """Read the files of ``tls``."""
    if (tls.private_key is None) != (tls.certificate_chain is None):
        raise ConfigError("a client's private key and its certificate belong together; give both, or neither")
    import grpc  # noqa: PLC0415  (slow to import, and only needed here)

    return grpc.ssl_channel_credentials(
        root_certificates=_content(tls.root_certificates),
        private_key=_content(tls.private_key),
        certificate_chain=_content(tls.certificate_chain),
    )


def _content(file: str | Path | None) -> bytes | None:
    """Read a PEM file, if one is given."""
    if file is None:
        return None
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {(error.strerror or str(error)).lower()}; give a PEM file") from error
    if b"-----BEGIN" not in content:
        raise ConfigError(f"{file} is no PEM file: it has no line that starts with -----BEGIN; convert it with openssl")
    return content
