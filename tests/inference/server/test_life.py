import asyncio
import gc
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc

from inference.errors import InferenceError, OverloadedError, StartupError
from inference.server import EXIT_CONFIGURATION, RunningServer, run
from inference.settings import ServerSettings
from tests.inference.server.fakes import GatedEngine, Start, client_of, picture, stub_of, until

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(__file__).resolve().parent / "programs"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVICE = "mapseek.v1.EmbeddingService"


def loads_never(_: Any) -> Any:
    raise StartupError("There is no model.")


async def test_health_tells_the_truth_from_the_first_moment_to_the_last(
    start: Start, engine: GatedEngine
) -> None:
    engine.gate.clear()  # the warm-up waits for it
    async with start(watchdog_s=1.0) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            request = pb.EmbedRequest(image=picture(1))
            watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))

            assert (await watch.read()).status == NOT_SERVING
            for name in ("", SERVICE):
                check = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert check.status == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Embed(request)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "loading its model" in (caught.value.details() or "")

            engine.gate.set()
            assert (await watch.read()).status == SERVING
            await server.ready()
            for name in ("", SERVICE):
                check = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert check.status == SERVING
            await stub.Embed(request)

            engine.failures = [InferenceError("The model failed.")] * 5
            for _ in range(3):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Embed(request)
                assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert (await watch.read()).status == NOT_SERVING
            assert (await watch.read()).status == SERVING
            await stub.Embed(request)

            engine.gate.clear()
            hung = stub.Embed(request)
            assert (await watch.read()).status == NOT_SERVING
            for call in (hung, stub.Embed(request)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert "does not answer at present" in (caught.value.details() or "")
            engine.gate.set()
            assert (await watch.read()).status == SERVING
            await stub.Embed(request)

            await server.stop()
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() is grpc.aio.EOF


async def test_the_collector_passes_over_what_was_loaded_as_long_as_the_server_is_there(
    start: Start,
) -> None:
    async with start() as server:
        await server.ready()
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0


async def test_probes_of_unknown_services(server: RunningServer) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await watch.read()).status == UNKNOWN
        watch.cancel()


async def test_reflection_lists_the_services(server: RunningServer) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        (answer,) = [one async for one in reflection.ServerReflectionInfo(iter(asked))]
    assert {service.name for service in answer.list_services_response.service} == {
        SERVICE,
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_reflection_describes_both_protocols(server: RunningServer) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        for symbol in ("inference.ModelInferRequest", "mapseek.v1.EmbeddingService"):
            asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)]
            (answer,) = [one async for one in reflection.ServerReflectionInfo(iter(asked))]
            assert answer.file_descriptor_response.file_descriptor_proto


async def test_draining_finishes_what_runs_and_refuses_what_is_new(
    start: Start, engine: GatedEngine
) -> None:
    async with start() as server, stub_of(server) as stub:
        await server.ready()
        engine.gate.clear()
        running = stub.Embed(pb.EmbedRequest(image=picture(1)))
        await asyncio.to_thread(engine.entered.acquire)
        stopping = asyncio.create_task(server.stop())
        await until(lambda: not server.serving)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(pb.EmbedRequest(image=picture(2)))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        engine.gate.set()
        assert (await running).embedding.values
        await stopping


async def test_calls_that_outlast_the_drain_are_cut_off_as_unavailable(
    start: Start, engine: GatedEngine
) -> None:
    async with start(drain_s=0.0) as server, stub_of(server) as stub:
        await server.ready()
        engine.gate.clear()
        running = stub.Embed(pb.EmbedRequest(image=picture(1)))
        await asyncio.to_thread(engine.entered.acquire)
        await server.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_watcher_does_not_hold_up_the_stop(start: Start) -> None:
    async with start(drain_s=3600.0) as server:
        await server.ready()
        async with grpc.aio.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            await server.stop()


async def test_a_model_that_does_not_load_is_a_startup_error(start: Start) -> None:
    async with start(load=loads_never) as server:
        with pytest.raises(StartupError, match="There is no model"):
            await server.ready()
        with pytest.raises(StartupError, match="There is no model"):
            await server.ended()


async def test_a_taken_port_is_a_startup_error(server: RunningServer, start: Start) -> None:
    with pytest.raises(StartupError, match=r"cannot listen on .*: Address already in use"):
        async with start(listen=server.address):
            pass


async def test_a_unix_socket(start: Start, tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'mapseek.sock'}"
    for _ in range(2):  # a socket that a server left behind is no obstacle
        async with start(listen=address) as server, client_of(server.address) as client:
            assert server.address == address
            assert (await client.wait_ready(30)).name == "fake"
            with pytest.raises(StartupError, match=f"{address}: Address already in use"):
                async with start(listen=address):
                    pass
            async with client_of(address) as another:  # over a connection of its own
                assert (await another.wait_ready(30)).name == "fake"


async def test_a_pipeline_that_breaks_ends_the_server(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = asyncio.Event()

    async def serve(_: object) -> None:
        await broken.wait()
        raise ZeroDivisionError

    monkeypatch.setattr("inference.server.Pipeline.serve", serve)
    async with start() as server:
        broken.set()
        with pytest.raises(ZeroDivisionError):
            await server.ended()


def connection(path: bytes, *metadata: tuple[bytes, bytes]) -> bytes:
    """The beginning of an HTTP/2 connection with one call, whose client may say anything."""
    headers = b"".join(
        b"\x00" + bytes([len(key)]) + key + bytes([len(value)]) + value
        for key, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            *metadata,
        )
    )
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        + len(headers).to_bytes(3)
        + b"\x01\x05\x00\x00\x00\x01"
        + headers
    )


async def test_a_method_that_is_no_text_does_not_close_the_port(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Found by the fuzzer: it ends gRPC's own loop, and nobody was listening any more."""
    async with start() as server, client_of(server.address) as connected:
        await server.ready()
        host, _, port = server.address.rpartition(":")
        for number in range(1, 21):
            # Somebody is connected, and asks on: gRPC by itself would wait until they are gone.
            assert (await connected.embed(picture(1))).model_id
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(connection(b"/\xff\xff/X"))
            await writer.drain()
            await until(lambda: caplog.text.count("listening anew") == number)  # noqa: B023
            async with client_of(server.address) as client:
                assert (await client.embed(picture(1))).model_id
            writer.close()


async def test_calls_of_all_methods_are_waited_for_in_one_place(start: Start) -> None:
    async with start() as server, client_of(server.address) as client:
        await client.wait_ready(30)
        waiting = [
            task
            for task in asyncio.all_tasks()
            if "AioServer._request_" in getattr(task.get_coro(), "__qualname__", "")
        ]
        assert len(waiting) == 1


async def test_who_makes_the_server_listen_anew_has_the_same_quota_and_token(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("correct-horse-battery\n")
    async with start(token_file=tokens, max_rate_per_client=0.001) as server:
        await server.ready()
        tokens.unlink()  # it is read at the start, and may be gone since
        host, _, port = server.address.rpartition(":")
        async with client_of(server.address, token="correct-horse-battery") as client:
            await client.model()
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(connection(b"/\xff\xff/X"))
            await writer.drain()
            await until(lambda: "listening anew" in caplog.text)
            with pytest.raises(OverloadedError, match="images a second"):
                await client.model()
            writer.close()


async def test_metadata_that_is_no_text_gets_into_no_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(token="correct-horse-battery") as server:
        await server.ready()
        host, _, port = server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(connection(b"/a.Service/X", (b"x-key", b"my secret \xff")))
        await writer.drain()
        answer = b""
        while b"grpc-status" not in answer:
            more = await reader.read(65536)
            assert more, answer
            answer += more
        writer.close()
    assert "secret" not in caplog.text
    assert "Traceback" not in caplog.text


class Process:
    """A server process, and its log line by line."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={"PATH": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []

    def wait_for_log(self, text: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if text in line:
                return line
        pytest.fail(f"The log never said {text!r}: {''.join(self.log)}")

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def write_line(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Waits for the end and returns the exit status."""
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)
        return self.process.wait(timeout=60)


@pytest.fixture
def gated_process() -> Iterator[tuple[Process, str]]:
    """A server that computes by command, and its address."""
    process = Process(str(PROGRAMS / "gated_server.py"))
    line = process.wait_for_log("serving fake@43602d44172a on ")
    assert line.rstrip().endswith(" with FakeProvider")
    address = line.partition(" on ")[2].partition(" with ")[0]
    assert not address.endswith(":0")
    yield process, address
    process.process.kill()
    process.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(
    gated_process: tuple[Process, str], number: signal.Signals
) -> None:
    process, address = gated_process
    with grpc.insecure_channel(address) as channel:
        stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        running = stub.Embed.future(pb.EmbedRequest(image=picture(1)))
        assert process.read_line() == "computing\n"
        process.process.send_signal(number)
        process.wait_for_log(f"{number.name}: draining")
        with pytest.raises(grpc.RpcError) as caught:
            stub.Embed(pb.EmbedRequest(image=picture(2)))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        process.write_line("compute")
        assert running.result(timeout=60).embedding.values
    assert process.end() == 0
    assert "drained" in process.log[-1]


def test_a_second_signal_kills(gated_process: tuple[Process, str]) -> None:
    process, address = gated_process
    with grpc.insecure_channel(address) as channel:
        stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        running = stub.Embed.future(pb.EmbedRequest(image=picture(1)))
        assert process.read_line() == "computing\n"
        process.process.terminate()
        process.wait_for_log("draining")
        process.process.terminate()
        assert process.end() == -signal.SIGTERM
        assert running.exception(timeout=60) is not None


RUN = "import sys; from inference.server import run; from inference.settings import ServerSettings"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"MAPSEEK_MODEL": "/nowhere"}, "/nowhere is no exported model"),
        (
            {"MAPSEEK_LISTEN": "192.0.2.1:0", "MAPSEEK_INSECURE": "1"},
            "cannot listen on 192.0.2.1:0",
        ),
        ({"MAPSEEK_LISTEN": "a..b:0", "MAPSEEK_INSECURE": "1"}, "cannot listen on a..b:0"),
    ],
)
def test_a_startup_error_is_one_sentence_and_its_own_exit_status(
    environment: dict[str, str], sentence: str
) -> None:
    environment = {"MAPSEEK_LISTEN": "127.0.0.1:0"} | environment
    process = Process("-c", f"{RUN}; sys.exit(run(ServerSettings.load()))", **environment)
    assert process.end() == EXIT_CONFIGURATION == 78
    log = "".join(process.log)
    assert sentence in log
    assert "Traceback" not in log
    process.process.communicate()


def test_a_wrong_setting_of_the_telemetry_is_told_like_every_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAPSEEK_LOG_LEVEL", "loud")
    with pytest.raises(StartupError, match="MAPSEEK_LOG_LEVEL"):  # the commands make it a 2
        run(ServerSettings.load(), load=loads_never)


def test_a_broken_loop_ends_the_process_with_1() -> None:
    break_it = (
        "import inference.server as s, unittest.mock as m\n"
        "async def serve(self): raise ZeroDivisionError\n"
        "s.Pipeline.serve = serve\n"
        f"sys.argv = ['x']; exec(open({str(PROGRAMS / 'gated_server.py')!r}).read())"
    )
    process = Process("-c", f"import sys\n{break_it}")
    assert process.end() == 1
    assert "ZeroDivisionError" in "".join(process.log)
    process.process.communicate()
