"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    # A job that a script runs in the background inherits an ignored SIGINT, and so would the
    # programs that are interrupted here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
