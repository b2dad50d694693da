"""Spans around gRPC calls, and the trace's way over the wire.

`opentelemetry-instrumentation-grpc` (0.66b2) does this too, but not well enough for grpc.aio:
its client interceptor awaits the status before it hands the call out, so a caller's cancellation
ends there (the server works on, and the span is never ended); spans of cancelled streams are lost;
and its server interceptor breaks stream handlers that are coroutines. What is here hands the call
out at once and watches it from the side.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from inference import logs
from inference.handlers import letting_go

_tracer = trace.get_tracer("mapseek.rpc")

_CORRELATION_KEY = "x-correlation-id"

# Probes come every few seconds and tell nothing.
_UNTRACED = ("/grpc.health.", "/grpc.reflection.")

# Codes that blame the server; the others are the caller's doing and no error of this process.
# (OpenTelemetry's conventions for gRPC server spans.)
_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class _ClientTracing:
    """What the client's two kinds of interceptor share: start a span, watch the call end it."""

    def __init__(self) -> None:
        # The loop holds tasks weakly; this keeps the watchers until they are done.
        self._watchers: set[asyncio.Task[None]] = set()

    def _start(
        self, details: grpc.aio.ClientCallDetails
    ) -> tuple[Span, grpc.aio.ClientCallDetails]:
        # grpc.aio gives the method as bytes, against its own type.
        named: str | bytes = details.method
        method = named.decode() if isinstance(named, bytes) else named
        span = _tracer.start_span(
            method.lstrip("/"), kind=SpanKind.CLIENT, attributes=_attributes(method)
        )
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span))
        if bound := logs.correlation_id():
            carrier[_CORRELATION_KEY] = bound
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *carrier.items())
        passed_on = grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=details.timeout,
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )
        return span, passed_on

    def _watch(self, span: Span, call: "grpc.aio.Call") -> None:
        watcher = asyncio.create_task(_end_with(span, call))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)


async def _end_with(span: Span, call: "grpc.aio.Call") -> None:
    """Ends the span when the call ends, however it ends."""
    try:
        code = await call.code()
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code is not grpc.StatusCode.OK:
            span.set_status(Status(StatusCode.ERROR, f"{code.name}: {await call.details()}"))
    finally:
        span.end()


class _UnaryClientInterceptor(_ClientTracing, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        span, details = self._start(details)
        call = await continuation(details, request)
        self._watch(span, call)
        return call


class _StreamClientInterceptor(_ClientTracing, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, requests: Any
    ) -> Any:
        span, details = self._start(details)
        call = await continuation(details, requests)
        self._watch(span, call)
        return call


def tracing_client_interceptors() -> list[grpc.aio.ClientInterceptor]:
    """For a channel: one for unary calls, one for bidirectional streams."""
    return [_UnaryClientInterceptor(), _StreamClientInterceptor()]


class TracingServerInterceptor(grpc.aio.ServerInterceptor):
    """Answers every call (but probes) inside a span that continues the caller's trace."""

    async def intercept_service(
        self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails
    ) -> Any:
        """Wraps the method's handler."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(_UNTRACED):
            return handler
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behavior = getattr(handler, kind)
            if behavior is not None:
                make = getattr(grpc, f"{kind}_rpc_method_handler")
                return make(
                    _traced(behavior, details.method),
                    request_deserializer=handler.request_deserializer,
                    response_serializer=handler.response_serializer,
                )
        return handler


def _traced(behavior: Callable[..., Any], method: str) -> Callable[..., Any]:
    """The same handler in a span; it stays a coroutine or an async generator, as it was."""
    if inspect.isasyncgenfunction(behavior):

        async def generate(request: Any, servicer: Any) -> AsyncIterator[Any]:
            with _serving(method, servicer):
                async for response in behavior(request, servicer):
                    yield response

        return generate

    async def answer(request: Any, servicer: Any) -> Any:
        with _serving(method, servicer):
            return await behavior(request, servicer)

    return letting_go(answer)


@contextmanager
def _serving(method: str, servicer: Any) -> Iterator[None]:
    metadata = {
        key: value for key, value in servicer.invocation_metadata() or () if isinstance(value, str)
    }
    caller = propagate.extract(metadata)
    span = _tracer.start_span(
        method.lstrip("/"), caller, kind=SpanKind.SERVER, attributes=_attributes(method)
    )
    # Never detached: grpc gives each call a task, hence a context, of its own, and a generator may
    # be closed in another one, where detaching fails.
    context.attach(trace.set_span_in_context(span, caller))
    logs.bind_correlation_id(metadata.get(_CORRELATION_KEY))
    code = grpc.StatusCode.UNKNOWN  # what grpc answers for an exception that nobody mapped
    try:
        yield
        # To grpc.aio, a stream whose caller left while it was read ends like one that is complete.
        code = _BY_NUMBER[_number(servicer.code())]
    except (asyncio.CancelledError, GeneratorExit):
        code = grpc.StatusCode.CANCELLED  # the caller left, or its deadline passed
        raise
    except BaseException as error:
        code = _BY_NUMBER.get(_number(servicer.code()), code)
        if code is grpc.StatusCode.OK:
            code = grpc.StatusCode.UNKNOWN
        if not isinstance(error, grpc.aio.AbortError):
            span.record_exception(error)
        raise
    finally:
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code in _SERVER_FAULTS:
            span.set_status(Status(StatusCode.ERROR, code.name))
        span.end()


def _number(code: "int | grpc.StatusCode | None") -> int:
    """grpc.aio's servicer context tells its code as a number, or not at all before it is set."""
    if code is None:
        return 0
    return code if isinstance(code, int) else int(code.value[0])


def _attributes(method: str) -> dict[str, str]:
    service, _, name = method.lstrip("/").partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
