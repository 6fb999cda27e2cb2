"""Encrypted connections, to a server and of a client that shows who it is."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from certificates import write_certificates
from toy_model import quadrant_labels, quadrants

import toco_serve.server.process
from toco_core.errors import ConfigError, ServeError
from toco_serve import AsyncClient, Client, EmbeddedTriton, Ports, Tls
from toco_serve.errors import UnreachableError

ANY = Ports(0, 0, 0)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder)
    return folder


@pytest.fixture(scope="module", params=["TLS", "mTLS"])
def encrypted(request, repository: Path, certificates: Path) -> Iterator[tuple[str, str]]:
    """A real Triton that speaks TLS alone, and asks who the client is or does not; gives which, and its address."""
    original: Callable[..., list[str]] = toco_serve.server.process.embedded_arguments
    which = {"TLS": "--grpc-use-ssl=true", "mTLS": "--grpc-use-ssl-mutual=true"}[request.param]
    files = {"server-cert": "server.pem", "server-key": "server.key", "root-cert": "ca.pem"}
    options = [which, *(f"--grpc-{name}={certificates / file}" for name, file in files.items())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            toco_serve.server.process,
            "embedded_arguments",
            lambda *given, **more: [*original(*given, **more), *options],
        )
        with EmbeddedTriton(repository, ports=ANY) as server:
            yield request.param, f"localhost:{server.ports.grpc}"


def test_an_encrypted_server_is_asked_with_the_certificates_that_it_wants(encrypted, certificates):
    kind, url = encrypted
    with_key = Tls(certificates / "ca.pem", certificates / "client.key", certificates / "client.pem")
    tls = with_key if kind == "mTLS" else Tls(certificates / "ca.pem")

    async def ask() -> list[int]:
        async with AsyncClient(url, tls=tls) as asynchronous:
            return quadrant_labels((await asynchronous.segment(quadrants(64, 64))).mask)

    with Client(url, tls=tls) as client:
        assert quadrant_labels(client.segment(quadrants(64, 64)).mask) == [0, 1, 2, 3]
    assert asyncio.run(ask()) == [0, 1, 2, 3]


def test_a_server_of_another_signer_and_a_client_without_tls_are_refused(encrypted, certificates):
    _, url = encrypted
    for root in (certificates / "stranger.pem", None):
        with pytest.raises(ServeError) as untrusted:
            Client(url, tls=Tls(root))
        assert str(untrusted.value).startswith(f"no encrypted connection to {url} (")
        assert "CERTIFICATE_VERIFY_FAILED" in str(untrusted.value)
    with pytest.raises(UnreachableError) as plain:
        Client(url)
    assert str(plain.value) == (
        f"{url} closed the connection: it stopped, or it expects TLS or another certificate of this client"
    )


@pytest.mark.parametrize("encrypted", ["mTLS"], indirect=True)
def test_a_client_that_the_server_does_not_know_is_refused_by_it(encrypted, certificates):
    _, url = encrypted
    for names in ((None, None), ("stranger.key", "stranger.pem")):
        key, chain = (name and certificates / name for name in names)
        with pytest.raises(UnreachableError, match="closed the connection"):
            Client(url, tls=Tls(certificates / "ca.pem", key, chain))


def test_certificates_that_cannot_be_used_are_refused_before_a_connection_is_made(tmp_path):
    (tmp_path / "key.der").write_bytes(bytes(20))
    refused = {
        Tls(tmp_path / "none.pem"): f"cannot read {tmp_path}/none.pem: no such file or directory; give a PEM file",
        Tls(tmp_path / "key.der"): (
            f"{tmp_path}/key.der is no PEM file: it has no line that starts with -----BEGIN; convert it with openssl"
        ),
        Tls(None, tmp_path / "key.pem"): (
            "a client's private key and its certificate belong together; give both, or neither"
        ),
    }
    for tls, message in refused.items():
        with pytest.raises(ConfigError) as caught:
            Client("localhost:1", tls=tls)
        assert str(caught.value) == message
