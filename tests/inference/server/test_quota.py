import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mapseek.v1 import embedding_pb2 as pb

from inference.errors import OverloadedError, UnauthenticatedError
from inference.quota import Quota, client_of
from tests.inference.server.certificates import Authority
from tests.inference.server.fakes import GatedEngine, Start, picture, stub_of
from tests.inference.server.fakes import client_of as calling

ONE, OTHER = "correct-horse-battery", "another-horse-battery"


def test_a_bucket_fills_up_with_time_to_a_seconds_worth() -> None:
    now = 0.0
    quota = Quota(max_calls=0, images_per_s=4.0, clock=lambda: now)
    for _ in range(4):
        quota.take("a")
    with pytest.raises(OverloadedError, match="more than 4 images a second") as refused:
        quota.take("a")
    assert refused.value.retry_after_ms == pytest.approx(250, abs=2)
    quota.take("b")  # others are not held to it
    now = 0.25
    quota.take("a")
    now = 1000.0
    assert [quota.wait_s("a") for _ in range(5)] == [0, 0, 0, 0, 0.25]


def test_a_large_message_passes_and_leaves_a_debt() -> None:
    quota = Quota(max_calls=0, images_per_s=10.0, clock=lambda: 0.0)
    assert quota.wait_s("a", 30) == 0
    assert quota.wait_s("a", 1) == pytest.approx(2.1)


def test_a_client_may_have_so_many_calls_at_a_time() -> None:
    quota = Quota(max_calls=2, images_per_s=0)
    with quota.call("a"), quota.call("a"):
        with pytest.raises(OverloadedError, match="2 calls running"), quota.call("a"):
            pass
        with quota.call("b"):
            pass
    with quota.call("a"):
        quota.take("a", 10**9)  # no rate was set


def test_clients_are_forgotten_but_for_those_with_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.quota._MOST_CLIENTS", 3)
    quota = Quota(max_calls=1, images_per_s=0)
    with quota.call("busy"):
        for number in range(50):
            with quota.call(str(number)):
                pass
        assert len(quota._clients) == 3
        with pytest.raises(OverloadedError), quota.call("busy"):
            pass


class Context:
    def __init__(self, peer: str, identities: list[bytes] | None = None) -> None:
        self.peer = lambda: peer
        self.peer_identities = lambda: identities


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:192.0.2.7:50051", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50051", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff::1]:9", "2001:db8:1:2::/64"),
        ("unix:/run/mapseek.sock", "unix:/run/mapseek.sock"),
        ("ipv4:nonsense", "ipv4:nonsense"),
    ],
)
def test_an_address_is_a_client_without_its_port(peer: str, client: str) -> None:
    assert client_of(Context(peer), None) == client


def test_who_a_client_is() -> None:
    peer = "ipv4:192.0.2.7:50051"
    assert client_of(Context(peer, [b"bot"]), None) == "certificate:bot"
    by_token = client_of(Context(peer, [b"bot"]), ONE.encode())
    assert by_token.startswith("token:")
    assert ONE not in by_token


async def test_a_call_too_many_is_refused_with_a_time_to_come_back(
    start: Start, engine: GatedEngine
) -> None:
    async with start(max_calls_per_client=1) as server, stub_of(server) as stub:
        await server.ready()
        engine.gate.clear()
        running = stub.Embed(pb.EmbedRequest(image=picture(1)))
        await asyncio.to_thread(engine.entered.acquire)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(pb.EmbedRequest(image=picture(2)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(caught.value.trailing_metadata() or ())
        assert trailing["retry-after-ms"] == trailing["grpc-retry-pushback-ms"] == "200"
        async with grpc.aio.insecure_channel(server.address) as channel:  # probes are not counted
            health = health_pb2_grpc.HealthStub(channel)
            await asyncio.gather(*(health.Check(health_pb2.HealthCheckRequest()) for _ in range(5)))
        engine.gate.set()
        await running
        await stub.Embed(pb.EmbedRequest(image=picture(2)))
    assert engine.computed == [1, 2]


async def test_a_call_counts_before_its_message_has_come(start: Start) -> None:
    async with start(max_calls_per_client=1) as server, stub_of(server) as stub:
        await server.ready()
        async with grpc.aio.insecure_channel(server.address) as channel:
            without_message: Any = channel.stream_stream("/mapseek.v1.EmbeddingService/Embed")
            held: Any = without_message()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                for _ in range(1000):  # until the server has heard of the other call
                    await asyncio.sleep(0.01)
                    if held.done():  # it came during one of these, and was refused itself
                        held = without_message()
                        continue
                    await stub.Embed(pb.EmbedRequest(image=picture(1)))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await held.write(pb.EmbedRequest(image=picture(2)).SerializeToString())
            assert pb.EmbedResponse.FromString(await held.read()).embedding.values
        await stub.Embed(pb.EmbedRequest(image=picture(1)))


async def test_strangers_watch_only_so_often(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.quota._MOST_PROBES", 2)
    async with start(token=ONE, max_calls_per_client=1) as server:
        await server.ready()
        async with grpc.aio.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest()
            watches = [health.Watch(request) for _ in range(2)]
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            for probe in (health.Watch(request).read(), health.Check(request)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await probe
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            watches[0].cancel()
            async with calling(server.address, token=ONE) as client:  # which watches, too
                assert (await client.embed(picture(1))).model_id


async def test_what_is_no_message_is_the_callers_fault_within_a_quota_too(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(max_calls_per_client=1) as server:
        await server.ready()
        async with grpc.aio.insecure_channel(server.address) as channel:
            call: Any = channel.unary_unary("/mapseek.v1.EmbeddingService/Embed")
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError, match="no request of Embed") as caught:
                    await call(b"\x0a\xff no protobuf")
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caplog.records == []


async def test_several_tokens_are_several_clients(
    start: Start, engine: GatedEngine, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# the bot\n{ONE}\n\n{OTHER}\n")
    async with start(token_file=tokens, max_calls_per_client=1) as server:
        await server.ready()
        engine.gate.clear()
        async with (
            calling(server.address, token=ONE, attempts=1) as one,
            calling(server.address, token=OTHER, attempts=1) as other,
            calling(server.address, token=ONE + "x") as stranger,
        ):
            first = asyncio.create_task(one.embed(picture(1)))
            await asyncio.to_thread(engine.entered.acquire)
            with pytest.raises(OverloadedError, match="1 calls running"):
                await one.embed(picture(2))
            second = asyncio.create_task(other.embed(picture(3)))
            with pytest.raises(UnauthenticatedError):
                await stranger.model()
            engine.gate.set()
            await asyncio.gather(first, second)
    assert sorted(engine.computed) == [1, 3]


async def test_certificates_are_clients(start: Start, engine: GatedEngine, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.sign("server")
    tls = {"tls_cert": certificate, "tls_key": key, "tls_client_ca": authority.file}
    mine = []
    for name in ("bot", "shell"):
        own_certificate, own_key = authority.sign(name, address=False)
        mine.append({"tls_client_cert": own_certificate, "tls_client_key": own_key})
    async with start(max_calls_per_client=1, **tls) as server:
        await server.ready()
        engine.gate.clear()
        async with (
            calling(server.address, tls_ca=authority.file, attempts=1, **mine[0]) as one,
            calling(server.address, tls_ca=authority.file, attempts=1, **mine[1]) as other,
        ):
            first = asyncio.create_task(one.embed(picture(1)))
            await asyncio.to_thread(engine.entered.acquire)
            with pytest.raises(OverloadedError):
                await one.embed(picture(2))
            second = asyncio.create_task(other.embed(picture(3)))
            engine.gate.set()
            await asyncio.gather(first, second)


async def test_a_stream_over_its_rate_is_slowed_down_and_loses_nothing(start: Start) -> None:
    async with start(max_rate_per_client=200.0) as server, calling(server.address) as client:
        await server.ready()

        async def images() -> AsyncIterator[tuple[int, bytes]]:
            for number in range(230):
                yield number, picture(number % 8)

        items = [item async for item in client.embed_many(images())]
    assert sorted(item.id for item in items) == list(range(230))


async def test_single_calls_over_the_rate_are_refused(start: Start) -> None:
    async with start(max_rate_per_client=0.001) as server, stub_of(server) as stub:
        await server.ready()
        await stub.Embed(pb.EmbedRequest(image=picture(1)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(pb.EmbedRequest(image=picture(1)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
