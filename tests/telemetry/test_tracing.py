"""Traces through grpc.aio, metrics and logs, as a real collector gets them."""

import json
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from inference.telemetry import BATCH_SIZE_BUCKETS, SECONDS_BUCKETS

Session = tuple[Any, dict[str, Any], str]

INVALID_ARGUMENT, UNKNOWN, CANCELLED, DEADLINE = 3, 2, 1, 4


def attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def json_lines(stderr: str) -> list[dict[str, Any]]:
    # gRPC's core writes a line of its own now and then.
    return [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]


def child(received: Any, parent: Span, kind: "Span.SpanKind.ValueType") -> Span:
    (found,) = [
        span
        for _, span in received.spans
        if span.parent_span_id == parent.span_id and span.kind == kind
    ]
    assert isinstance(found, Span)
    return found


def code(span: Span) -> Any:
    return attributes(span.attributes)["rpc.grpc.status_code"]


def test_calls_end_as_they_do_without_tracing(rpc_session: Session) -> None:
    _, told, _ = rpc_session
    assert told == {
        "answer": "fine",
        "refuse": "INVALID_ARGUMENT",
        "crash": "UNKNOWN",
        "deadline": "DEADLINE_EXCEEDED",
        "Generator": 3,
        "Coroutine": 3,
    }


def test_a_trace_goes_from_the_command_through_the_call_to_the_work(rpc_session: Session) -> None:
    received, _, _ = rpc_session
    root = received.one("mapseek.find")
    client = child(received, root, Span.SPAN_KIND_CLIENT)
    server = child(received, client, Span.SPAN_KIND_SERVER)
    work = child(received, server, Span.SPAN_KIND_INTERNAL)
    assert not root.parent_span_id
    assert work.name == "work fine"
    assert {span.trace_id for span in (root, client, server, work)} == {root.trace_id}
    assert attributes(server.attributes)["rpc.method"] == "Unary"
    assert code(client) == code(server) == 0


@pytest.mark.parametrize(
    ("work", "number", "server_at_fault"),
    [("work refuse", INVALID_ARGUMENT, False), ("work crash", UNKNOWN, True)],
)
def test_a_refusal_is_the_callers_fault_and_a_crash_the_servers(
    rpc_session: Session, work: str, number: int, *, server_at_fault: bool
) -> None:
    received, _, _ = rpc_session
    spans = {span.span_id: span for _, span in received.spans}
    server = spans[received.one(work).parent_span_id]
    client = spans[server.parent_span_id]
    assert code(server) == code(client) == number
    assert (server.status.code == Status.STATUS_CODE_ERROR) is server_at_fault
    assert client.status.code == Status.STATUS_CODE_ERROR
    # The reason of an abort is in the status; only a crash leaves its traceback.
    assert bool(server.events) is server_at_fault


def test_a_deadline_and_a_cancellation_end_both_spans(rpc_session: Session) -> None:
    received, _, _ = rpc_session
    spans = {span.span_id: span for _, span in received.spans}
    late, left = (spans[work.parent_span_id] for work in received.named("work wait"))
    assert [code(late), code(left)] == [CANCELLED, CANCELLED]
    assert code(spans[late.parent_span_id]) == DEADLINE
    assert code(spans[left.parent_span_id]) == CANCELLED


@pytest.mark.parametrize("name", ["Generator", "Coroutine"])
def test_a_stream_keeps_its_context_over_all_its_messages(rpc_session: Session, name: str) -> None:
    received, _, _ = rpc_session
    client = child(received, received.one(f"stream {name}"), Span.SPAN_KIND_CLIENT)
    server = child(received, client, Span.SPAN_KIND_SERVER)
    inside = [span for span in received.named("streamed") if span.parent_span_id == server.span_id]
    assert len(inside) == 3
    assert code(server) == code(client) == 0


def test_a_stream_that_the_caller_leaves_ends_both_spans(rpc_session: Session) -> None:
    received, _, stderr = rpc_session
    client = child(received, received.one("leaving"), Span.SPAN_KIND_CLIENT)
    server = child(received, client, Span.SPAN_KIND_SERVER)
    assert code(client) == CANCELLED
    assert server.end_time_unix_nano
    assert "Failed to detach context" not in stderr


def test_probes_leave_no_server_span(rpc_session: Session) -> None:
    received, _, _ = rpc_session
    probe = received.one("grpc.health.v1.Health/Check")
    assert probe.kind == Span.SPAN_KIND_CLIENT


def test_metrics_arrive_in_buckets_that_suit_them(rpc_session: Session) -> None:
    received, _, _ = rpc_session
    (duration,) = received.metric("mapseek.embed.duration").histogram.data_points
    assert tuple(duration.explicit_bounds) == SECONDS_BUCKETS
    assert attributes(duration.attributes) == {"stage": "decode"}
    (size,) = received.metric("mapseek.batch.size").histogram.data_points
    assert tuple(size.explicit_bounds) == BATCH_SIZE_BUCKETS
    (rejected,) = received.metric("mapseek.rejected").sum.data_points
    assert rejected.as_int == 1


def test_everything_names_the_service_that_sent_it(rpc_session: Session) -> None:
    received, _, _ = rpc_session
    resources = [
        resource
        for resource, *_ in (*received.spans, *received.metrics, *received.logs)
        if resource["service.name"] == "mapseek-test"
    ]
    assert len(resources) == len(received.spans) + len(received.metrics) + len(received.logs)
    assert all(resource["service.version"] for resource in resources)
    assert len({resource["service.instance.id"] for resource in resources}) == 1


def test_log_lines_carry_the_trace_on_both_ways(rpc_session: Session) -> None:
    received, _, stderr = rpc_session
    root = received.one("mapseek.find")
    records = {record.body.string_value: record for _, _, record in received.logs}
    printed = {line["message"]: line for line in json_lines(stderr)}
    at_caller, at_server = "token=[redacted] and more", "working on fine"

    assert records[at_caller].span_id == root.span_id
    assert records[at_caller].trace_id == records[at_server].trace_id == root.trace_id
    assert records[at_server].span_id == received.one("work fine").span_id
    assert printed[at_server]["trace_id"] == root.trace_id.hex()
    assert printed[at_server]["span_id"] == received.one("work fine").span_id.hex()
    # The correlation id went over the wire; the caller bound it, the server's line has it.
    assert printed[at_caller]["correlation_id"] == printed[at_server]["correlation_id"] == "run-7"
    assert attributes(records[at_server].attributes)["correlation_id"] == "run-7"
    assert attributes(records[at_caller].attributes)["picture"] == "a.png"
    assert "very-secret-thing" not in stderr
    assert not any("very-secret-thing" in str(record) for record in records.values())
