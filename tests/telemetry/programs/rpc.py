"""A caller and a server in one process, with telemetry on: every kind of call and of ending."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from opentelemetry import metrics, trace

from inference import telemetry

tracer = trace.get_tracer("program")
log = logging.getLogger("program")
meter = metrics.get_meter("program")

waiting, gone = asyncio.Event(), asyncio.Event()

Stream = grpc.aio.StreamStreamMultiCallable[bytes, bytes]


class Handlers(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return {
            "/test.S/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/test.S/Generator": grpc.stream_stream_rpc_method_handler(self.generator),
            "/test.S/Coroutine": grpc.stream_stream_rpc_method_handler(self.coroutine),
            "/grpc.health.v1.Health/Check": grpc.unary_unary_rpc_method_handler(self.unary),
        }.get(details.method)

    async def unary(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        with tracer.start_as_current_span(f"work {request.decode()}"):
            log.info("working on %s", request.decode())
            match request:
                case b"refuse":
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such picture")
                case b"crash":
                    raise RuntimeError("something broke")
                case b"wait":
                    waiting.set()
                    try:
                        await asyncio.Event().wait()
                    finally:
                        gone.set()
        return request

    async def generator(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            async for request in requests:
                with tracer.start_as_current_span("streamed"):
                    yield request
        finally:
            gone.set()

    async def coroutine(self, requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async for request in requests:
            with tracer.start_as_current_span("streamed"):
                pass
            await context.write(request)


async def three() -> AsyncIterator[bytes]:
    for request in (b"1", b"2", b"3"):
        yield request


async def main() -> dict[str, Any]:
    server = grpc.aio.server(interceptors=telemetry.server_interceptors())
    server.add_generic_rpc_handlers((Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    told: dict[str, Any] = {}
    channel = grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", interceptors=telemetry.client_interceptors()
    )
    async with channel:
        unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test.S/Unary")
        with tracer.start_as_current_span("mapseek.find"), telemetry.correlate("run-7"):
            log.info("token=%s and more", "very-secret-thing", extra={"picture": "a.png"})
            told["answer"] = (await unary(b"fine")).decode()
        for request in (b"refuse", b"crash"):
            try:
                await unary(request)
            except grpc.aio.AioRpcError as error:
                told[request.decode()] = error.code().name
        try:
            await unary(b"wait", timeout=0.1)
        except grpc.aio.AioRpcError as error:
            told["deadline"] = error.code().name
        await asyncio.wait_for(gone.wait(), 5)
        gone.clear()
        waiting.clear()

        with tracer.start_as_current_span("cancelling"):
            call = unary(b"wait")
            await asyncio.wait_for(waiting.wait(), 5)
            call.cancel()
        # The server must hear of it, or it goes on working for nobody.
        await asyncio.wait_for(gone.wait(), 5)
        gone.clear()

        for name in ("Generator", "Coroutine"):
            stream: Stream = channel.stream_stream(f"/test.S/{name}")
            with tracer.start_as_current_span(f"stream {name}"):
                told[name] = len([response async for response in stream(three())])
        gone.clear()
        with tracer.start_as_current_span("leaving"):
            leaving: Stream = channel.stream_stream("/test.S/Generator")
            held = leaving()
            await held.write(b"1")
            await held.read()
            held.cancel()
        await asyncio.wait_for(gone.wait(), 5)

        await channel.unary_unary("/grpc.health.v1.Health/Check")(
            health_pb2.HealthCheckRequest().SerializeToString()
        )
    await server.stop(None)
    return told


if __name__ == "__main__":
    with telemetry.set_up("mapseek-test", telemetry.TelemetrySettings.load()):
        meter.create_histogram("mapseek.embed.duration", unit="s").record(0.02, {"stage": "decode"})
        meter.create_histogram("mapseek.batch.size").record(8)
        meter.create_counter("mapseek.rejected").add(1, {"reason": "full"})
        told = asyncio.run(main())
    json.dump(told, sys.stdout)
