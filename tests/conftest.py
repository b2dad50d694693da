"""What holds for all tests."""

import gc
import signal
from collections.abc import Iterator

import pytest


def pytest_configure() -> None:
    # A job that a script runs in the background inherits an ignored SIGINT, and so would the
    # programs that are interrupted here.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Leaves what holds itself where it is, so that it is seen."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
