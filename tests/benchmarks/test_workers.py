import gc

from benchmarks.workers import worker_pool


class Waits:
    """Like a channel of gRPC: who collects it waits for a thread of the process that made it."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        collected.append(self)


collected: list[Waits] = []


def collect(_: int) -> int:
    gc.collect()
    return len(collected)


def test_a_worker_does_not_collect_what_it_inherited() -> None:
    gc.disable()
    try:
        Waits()
        with worker_pool(1) as pool:
            assert list(pool.map(collect, range(2))) == [0, 0]
    finally:
        gc.enable()
    gc.collect()
    assert len(collected) == 1, "its parent does"
