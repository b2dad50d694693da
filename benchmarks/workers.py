"""Processes that share out drawing and decoding."""

import gc
from concurrent.futures import ProcessPoolExecutor


def worker_pool(count: int) -> ProcessPoolExecutor:
    """So many processes for calls of plain functions; a context manager.

    A process that is forked inherits what its parent has not collected yet. It must not collect
    that itself: a gRPC channel among it waits for ever for a thread that only the parent has.
    """
    return ProcessPoolExecutor(count, initializer=gc.freeze)
