"""How a client reaches a server: address, message sizes, reconnecting, TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toco_core.errors import ConfigError

DEFAULT_URL = "localhost:8001"

_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True)
class Tls:
    """Files, PEM each, of an encrypted connection.

    Attributes:
        root_certificates: Who is trusted to sign the server's certificate; without it, whom the system trusts.
        private_key: This client's key, where the server asks who the client is (mTLS).
        certificate_chain: This client's certificate; goes with the key.
    """

    root_certificates: str | Path | None = None
    private_key: str | Path | None = None
    certificate_chain: str | Path | None = None


def channel_arguments(url: str, tls: Tls | None) -> dict[str, Any]:
    """Return what both of tritonclient's gRPC clients take, for a server at ``url``.

    Raises:
        ConfigError: A file of ``tls`` cannot be read, or key and certificate do not come together.
    """
    arguments: dict[str, Any] = {"url": url, "channel_args": _options(url)}
    return arguments if tls is None else {**arguments, "creds": _credentials(tls)}


def _options(url: str) -> list[tuple[str, int]]:
    """Messages of any size; a restarted server is found soon; no HTTP proxy on the way to this very machine."""
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
