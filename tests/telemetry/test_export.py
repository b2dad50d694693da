"""On, off, and a collector that is gone: what a process does about it."""

import json
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

RunProgram = Any  # the fixture's type lives in conftest.py, which tests cannot import


def told(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def refusing() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def mute() -> Iterator[str]:
    """An address that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_without_an_endpoint_nothing_of_the_sdk_is_loaded(run_program: RunProgram) -> None:
    found = told(run_program("line.py"))
    assert found["sdk"] == []
    assert found["exporting"] is False
    assert found["interceptors"] == [0, 0]
    assert found["sampled"] is False


@pytest.mark.parametrize("variable", ["MAPSEEK_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_either_variable_turns_it_on(receiver: Any, run_program: RunProgram, variable: str) -> None:
    before = len(receiver.received.spans)
    done = run_program("line.py", **{variable: receiver.endpoint}, OTEL_SERVICE_NAME="theirs")
    found = told(done)
    assert found["exporting"] is True
    assert found["second"] is False
    assert found["interceptors"] == [2, 1]
    # What was still in the queues has gone when the process ends; its operator's name wins.
    (resource, _), *_ = receiver.received.spans[before:]
    assert {"alone", "linked"} == {span.name for _, span in receiver.received.spans[before:]}
    assert resource["service.name"] == "theirs"
    assert "one line" in done.stderr


def test_the_standard_switch_turns_it_off(receiver: Any, run_program: RunProgram) -> None:
    done = run_program("line.py", MAPSEEK_OTLP_ENDPOINT=receiver.endpoint, OTEL_SDK_DISABLED="true")
    assert told(done)["exporting"] is False


def test_a_ratio_of_nothing_begins_no_trace(receiver: Any, run_program: RunProgram) -> None:
    before = len(receiver.received.spans)
    done = run_program("line.py", MAPSEEK_OTLP_ENDPOINT=receiver.endpoint, MAPSEEK_TRACE_RATIO="0")
    assert told(done)["sampled"] is False
    # But what is linked to a recorded span is recorded with it.
    assert [span.name for _, span in receiver.received.spans[before:]] == ["linked"]


@pytest.mark.parametrize("address", ["refusing", "mute"])
def test_a_vanished_collector_neither_delays_nor_spams(
    request: pytest.FixtureRequest, run_program: RunProgram, address: str
) -> None:
    endpoint = request.getfixturevalue(address)
    # The exporters by themselves would try for 10 s, one signal after the other.
    done = run_program("line.py", "0.3", MAPSEEK_OTLP_ENDPOINT=endpoint)
    assert told(done)["exporting"] is True
    lines = done.stderr.splitlines()
    assert sum("one line" in line for line in lines) == 1
    assert sum("the collector did not take the last telemetry" in line for line in lines) == 1
    assert sum("opentelemetry" in line for line in lines) <= 1
    assert "Traceback" not in done.stderr
