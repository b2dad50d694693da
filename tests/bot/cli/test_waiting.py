"""What a command says about a server that does not answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from bot.cli import waiting
from bot.cli.waiting import ready
from inference.client import ClientSettings, EmbeddingClient
from inference.errors import UnavailableError
from tests.inference.server.certificates import Authority


@asynccontextmanager
async def not_serving(credentials: Any = None) -> AsyncIterator[str]:
    """A server that loads its model for ever."""
    server = grpc.aio.server()
    checks = health.aio.HealthServicer()
    await checks.set(
        "mapseek.v1.EmbeddingService", health_pb2.HealthCheckResponse.ServingStatus.NOT_SERVING
    )
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def said(server: str, **settings: Any) -> str:
    client_settings = ClientSettings.load(server=server, **settings)
    async with EmbeddingClient(client_settings) as client:
        with pytest.raises(UnavailableError) as caught:
            await ready(client, client_settings)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "READY_S", 1.0)


async def test_a_server_that_is_not_there_is_to_be_started() -> None:
    expected = "No server answers at 127.0.0.1:1: start one with `mapseek serve`."
    assert await said("127.0.0.1:1") == expected
    assert "No server answers at unix:none" in await said("unix:none")


async def test_a_server_that_loads_its_model_is_not_to_be_started_again() -> None:
    async with not_serving() as server:
        assert f"The server at {server} does not serve at present" in await said(server)


async def test_whoever_does_not_agree_on_tls_is_told(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path, "authority"), Authority(tmp_path, "stranger")
    certificate, key = authority.sign("server")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    (tmp_path / "garbage.pem").write_text("garbage")
    async with not_serving(credentials) as server:
        assert "hangs up: if it speaks TLS" in await said(server)
        for wrong in (stranger.file, tmp_path / "garbage.pem"):
            assert "do not agree on TLS" in await said(server, tls_ca=wrong)
    async with not_serving() as server:
        assert "do not agree on TLS" in await said(server, tls_ca=authority.file)
