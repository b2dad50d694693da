from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc

from inference.access import is_local
from inference.auth import TokenInterceptor
from inference.errors import StartupError, UnauthenticatedError, UnavailableError
from inference.malformed import MalformedInterceptor
from tests.inference.server.certificates import Authority
from tests.inference.server.fakes import GatedEngine, Start, client_of, picture, stub_of

TOKEN = "correct-horse-battery"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


async def test_the_right_token_opens_every_method(start: Start) -> None:
    async with start(token=TOKEN) as server:
        await server.ready()
        async with client_of(server.address, token=TOKEN) as client:
            assert (await client.embed(picture(1))).model_id
            assert (await client.model()).name == "fake"


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong-horse-battery"),),
        (("authorization", f"Bearer {TOKEN}x"),),
        (("authorization", f"Bearer {TOKEN[:-1]}"),),
        (("authorization", TOKEN),),
        (("authorization", f"Basic {TOKEN}"),),
        (("token", f"Bearer {TOKEN}"),),
        (("authorization-bin", f"Bearer {TOKEN}".encode()),),
    ],
)
async def test_without_the_right_token_nothing_is_answered(
    start: Start, engine: GatedEngine, metadata: tuple[tuple[str, str | bytes], ...]
) -> None:
    async with start(token=TOKEN) as server, stub_of(server) as stub:
        await server.ready()
        for call in (
            stub.Embed(pb.EmbedRequest(image=picture(1)), metadata=metadata),
            stub.GetModel(pb.GetModelRequest(), metadata=metadata),
            stub.EmbedText(pb.EmbedTextRequest(text="x"), metadata=metadata),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        stream = stub.EmbedStream(metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert engine.computed == []


async def test_methods_that_strangers_make_up_are_not_remembered() -> None:
    malformed, tokens = MalformedInterceptor("a.Service"), TokenInterceptor([TOKEN])

    async def nobody(_: Any) -> None:
        pytest.fail("a call without a token was passed on")

    async def refused(details: Any) -> Any:
        return await tokens.intercept_service(nobody, details)

    for number in range(10):
        call: Any = SimpleNamespace(method=f"/a.Service/{number}", invocation_metadata=())
        assert (await malformed.intercept_service(refused, call)) is not None
    assert not malformed._wrapped


async def test_health_is_open_and_reflection_is_not(start: Start) -> None:
    async with start(token=TOKEN) as server:
        await server.ready()
        async with grpc.aio.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await reflection.ServerReflectionInfo(asked).read()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_client_names_a_wrong_token_and_does_not_retry(start: Start) -> None:
    async with start(token=TOKEN) as server, client_of(server.address) as client:
        with pytest.raises(UnauthenticatedError, match="token is required"):
            await client.wait_ready(30)
        with pytest.raises(UnauthenticatedError):
            await client.embed(picture(1))


async def test_tls(start: Start, authority: Authority) -> None:
    certificate, key = authority.sign("server")
    async with start(tls_cert=certificate, tls_key=key, token=TOKEN) as server:
        await server.ready()
        async with client_of(server.address, tls_ca=authority.file, token=TOKEN) as client:
            assert (await client.embed(picture(1))).model_id
        async with client_of(server.address, token=TOKEN, attempts=1) as plain:
            with pytest.raises(UnavailableError):
                await plain.embed(picture(1))


async def test_a_server_with_a_certificate_of_another_authority_is_not_trusted(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.sign("server")
    stranger = Authority(tmp_path, "stranger")
    async with start(tls_cert=certificate, tls_key=key) as server:
        async with client_of(server.address, tls_ca=stranger.file, attempts=1) as client:
            with pytest.raises(UnavailableError):
                await client.model()


async def test_mutual_tls(start: Start, authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.sign("server")
    client_certificate, client_key = authority.sign("client")
    other_certificate, other_key = Authority(tmp_path, "stranger").sign("other")
    async with start(tls_cert=certificate, tls_key=key, tls_client_ca=authority.file) as server:
        await server.ready()
        async with client_of(
            server.address,
            tls_ca=authority.file,
            tls_client_cert=client_certificate,
            tls_client_key=client_key,
        ) as client:
            assert (await client.embed(picture(1))).model_id
        async with client_of(server.address, tls_ca=authority.file, attempts=1) as nobody:
            with pytest.raises(UnavailableError):
                await nobody.model()
        async with client_of(
            server.address,
            tls_ca=authority.file,
            tls_client_cert=other_certificate,
            tls_client_key=other_key,
            attempts=1,
        ) as stranger:
            with pytest.raises(UnavailableError):
                await stranger.model()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        (b"", "holds no token: write one a line"),
        (b"# nothing\n\n", "holds no token"),
        (b"\xff\xfe", "is no text file"),
        (f"{TOKEN}\nshort\n".encode(), "line 2 of .*: a token needs at least 16 characters"),
        (b"sixteen characters", "line 1 of .*: a token may have printable ASCII"),
    ],
)
async def test_a_file_of_tokens_that_cannot_be_used_is_a_startup_error(
    start: Start, tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    tokens = tmp_path / "tokens"
    if content is not None:
        tokens.write_bytes(content)
    with pytest.raises(StartupError, match=f"MAPSEEK_TOKEN_FILE: .*{sentence}") as caught:
        async with start(token_file=tokens):
            pass
    assert TOKEN not in str(caught.value)
    assert "sixteen" not in str(caught.value)


@pytest.mark.parametrize(
    ("certificate", "key", "sentence"),
    [
        ("missing.pem", "server.key", "MAPSEEK_TLS_CERT: .*missing.pem cannot be read: No such"),
        ("server.pem", "missing.key", "MAPSEEK_TLS_KEY: .*missing.key cannot be read: No such"),
        ("text", "server.key", "MAPSEEK_TLS_CERT: .*text is no PEM file"),
        ("server.pem", "other.key", "the certificate and the key do not fit together"),
    ],
)
async def test_tls_files_that_cannot_be_used_are_startup_errors(
    start: Start, authority: Authority, tmp_path: Path, certificate: str, key: str, sentence: str
) -> None:
    authority.sign("server")
    authority.sign("other")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StartupError, match=sentence):
        async with start(tls_cert=tmp_path / certificate, tls_key=tmp_path / key):
            pass


async def test_a_compressed_message_is_refused_before_it_is_unpacked(
    start: Start, engine: GatedEngine
) -> None:
    async with start(max_image_bytes=1024 * 1024) as server:
        await server.ready()
        async with grpc.aio.insecure_channel(
            server.address, compression=grpc.Compression.Gzip
        ) as channel:
            stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Embed(pb.EmbedRequest(image=picture(1, 64 * 1024 * 1024)))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert engine.computed == []


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:50051", True),
        ("127.9.9.9:1", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("unix:/run/mapseek.sock", True),
        ("unix:mapseek.sock", True),
        ("dns:///localhost:50051", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("0.0.0.0:50051", False),
        ("[::]:50051", False),
        ("192.168.1.2:50051", False),
        ("example.org:50051", False),
        ("localhost.example.org:50051", False),
        ("dns:///example.org:50051", False),
        ("ipv4:127.0.0.1:1,192.0.2.1:1", False),
        ("127.0.0.1.example.org:1", False),
    ],
)
def test_what_is_local(address: str, local: bool) -> None:  # noqa: FBT001  a case's value
    assert is_local(address) is local
