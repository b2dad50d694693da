"""`mapseek bench serve`: the server against what the same machine can do without a server.

Everything is measured in rounds, each with a little of everything, so that a machine that is busy
with other work disturbs all figures alike; ratios are taken within a round, and their median over
the rounds is reported.
"""

import asyncio
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import SecretStr

from benchmarks.limit import Limit, Recipe
from benchmarks.load import ClosedLoop, LoadProcess, OpenLoop, Stream
from benchmarks.machine import Provider, this_machine
from benchmarks.memory import cpu_s, rss_bytes
from benchmarks.pictures import screenshots
from benchmarks.report import Progress, Report
from benchmarks.rounds import Measured, Round
from benchmarks.server_process import RunningServer, run_server
from inference.artifact import Artifact
from inference.client import ClientSettings, EmbeddingClient
from inference.client.results import Limits
from inference.errors import StartupError

# How long a request of an open loop waits for its answer before it counts as failed.
_PATIENCE_S = 10.0

# An overload goes on until so many more are sent than are answered: the server's queue is then full
# for half of the time.
_TOO_MANY = 512

# Images a message of the bulk stream.
_PER_MESSAGE = 8

# How long each arrangement is tried in the search for the limit, as a share of a measurement.
_SEARCH_SHARE = 0.4

Step = tuple[str, Callable[[], None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What to measure.

    Attributes:
        model: The model folder; also of a server that runs already, for the limit.
        server: HOST:PORT of a server that runs already; None starts one.
        token: Its bearer token.
        rounds: How often everything is measured.
        seconds: How long each measurement of a round takes.
        callers: Numbers of callers of the closed loops.
        loads: Rates of the open loops, as shares of the throughput with the most callers.
        pictures: How many different screenshots are sent.
        provider: The onnxruntime provider of the limit and of the server.
    """

    model: Path
    server: str | None = None
    token: str = ""
    rounds: int = 10
    seconds: float = 1.5
    callers: Sequence[int] = (1, 8, 32)
    loads: Sequence[float] = (0.25, 0.5, 0.8, 2.0)
    pictures: int = 64
    provider: Provider = "auto"


def bench_serve(options: ServeOptions, progress: Progress) -> tuple[Report, Measured]:
    """Measures and reports; Ctrl-C ends it with the figures so far.

    Raises:
        StartupError: The model cannot be loaded, or the server does not start or is another's.
        EmbeddingError: The server does not answer, or not without its token.
    """
    machine = this_machine()
    artifact = Artifact.load(options.model)
    measured = Measured()
    with tempfile.TemporaryDirectory() as folder, _server(options) as (address, ours):
        limits = asyncio.run(_limits_of(address, artifact, options))
        pictures = screenshots(options.pictures)
        for number, picture in enumerate(pictures):
            (Path(folder) / f"{number:05}.jpg").write_bytes(picture)
        limit = Limit(
            artifact,
            pictures,
            max_image_bytes=limits.max_image_bytes,
            max_image_pixels=limits.max_image_pixels,
            provider=options.provider,
        )
        if ours is not None:
            measured.cold_start_s = ours.cold_start_s
            measured.rss_at_start_bytes = ours.rss_at_start_bytes
        with LoadProcess(address, Path(folder), token=options.token) as load:
            try:
                _Rounds(options, limit, load, ours, measured).run(progress)
            except KeyboardInterrupt:
                measured.complete = False
    report = Report(
        command="mapseek bench serve",
        machine=machine,
        model_id=artifact.manifest.model_id,
        settings=_told(options),
        tables=measured.tables(),
        targets=measured.targets(),
        data=measured.data(),
        complete=measured.complete,
    )
    return report, measured


class _Rounds:
    """The measurements in their order."""

    def __init__(
        self,
        options: ServeOptions,
        limit: Limit,
        load: LoadProcess,
        server: RunningServer | None,
        measured: Measured,
    ) -> None:
        self._options = options
        self._limit = limit
        self._load = load
        self._server = server
        self._measured = measured

    def run(self, progress: Progress) -> None:
        options = self._options
        try_s = _SEARCH_SHARE * options.seconds
        search_s = self._limit.search_seconds(try_s)
        steps = 4 + len(options.callers) + len(options.loads)
        whole_s = search_s + options.rounds * steps * options.seconds
        done_s = 0.0

        def tried(recipe: Recipe, seconds: float) -> None:
            nonlocal done_s
            progress(f"searching the limit: {recipe}", done_s / whole_s)
            done_s += seconds

        recipe = self._measured.recipe = self._limit.search(try_s, on_try=tried)
        for number in range(options.rounds):
            now = Round()
            self._measured.rounds.append(now)
            for what, step in self._steps(now, recipe, number):
                progress(f"round {number + 1} of {options.rounds}: {what}", done_s / whole_s)
                step()
                done_s += options.seconds
                if self._server is not None:
                    rss, highest = rss_bytes(self._server.pid), self._measured.rss_highest_bytes
                    self._measured.rss_highest_bytes = max(rss, highest or 0)
        progress("done", 1.0)

    def _steps(self, now: Round, recipe: Recipe, number: int) -> list[Step]:
        """Closed loops and limits in an order by chance, then the open loops that build on them."""

        def bare() -> None:
            now.limit = self._limit.throughput(recipe, self._options.seconds)

        def alone() -> None:
            now.single = self._limit.single(self._options.seconds)

        def bulk() -> None:
            job = Stream(images=_PER_MESSAGE, seconds=self._options.seconds)
            now.stream = self._load.run(job)

        first: list[Step] = [
            ("no server, best arrangement", bare),
            ("no server, one picture at a time", alone),
            (f"one stream, {_PER_MESSAGE} images a message", bulk),
            *(self._closed(now, callers) for callers in self._options.callers),
        ]
        random.Random(number).shuffle(first)
        opened = [self._open(now, share, number) for share in self._options.loads]
        beside = self._open(now, min(self._options.loads), number, bulk=_PER_MESSAGE)
        return [*first, *opened, beside]

    def _closed(self, now: Round, callers: int) -> Step:
        def step() -> None:
            job = ClosedLoop(callers=callers, seconds=self._options.seconds)
            if self._server is None:
                now.closed[callers] = self._load.run(job)
                return
            before = cpu_s(self._server.pid)
            now.closed[callers] = self._load.run(job)
            now.server_cpu_s[callers] = cpu_s(self._server.pid) - before

        return f"{callers} callers", step

    def _open(self, now: Round, share: float, number: int, *, bulk: int = 0) -> Step:
        def step() -> None:
            capacity = self._measured.capacity(max(self._options.callers))
            if not capacity:
                raise StartupError("The server answered no call of the closed loop well.")
            rate, seconds = share * capacity, self._options.seconds
            if share > 1:
                seconds = max(seconds, _TOO_MANY / (rate - capacity))
            job = OpenLoop(
                rate=rate,
                seconds=seconds,
                timeout_s=_PATIENCE_S,
                seed=number,
                bulk=bulk,
            )
            if bulk:
                now.beside_bulk[share] = self._load.run(job)
                return
            now.rates[share] = rate
            now.open[share] = self._load.run(job)

        beside = ", a bulk stream beside it" if bulk else ""
        return f"open loop at {share:g} of the capacity{beside}", step


@contextmanager
def _server(options: ServeOptions) -> Iterator[tuple[str, RunningServer | None]]:
    """The server's address, and the server where it is ours."""
    if options.server is not None:
        yield options.server, None
        return
    settings = {"provider": str(options.provider)}
    if options.token:
        settings["token"] = options.token
    with run_server(options.model, settings) as server:
        yield server.address, server


async def _limits_of(address: str, artifact: Artifact, options: ServeOptions) -> Limits:
    # Not `load`: what the operator has set is for their own server.
    settings = ClientSettings.model_construct(
        server=address, token=SecretStr(options.token) if options.token else None
    )
    async with EmbeddingClient(settings) as client:
        model = await client.wait_ready(_PATIENCE_S)
    if model.id != artifact.manifest.model_id:
        raise StartupError(
            f"The server on {address} serves {model.id}, but {options.model} is "
            f"{artifact.manifest.model_id}: name the folder that it serves with --model."
        )
    return model.limits


def _told(options: ServeOptions) -> dict[str, object]:
    """The options as the report shows them: without the secret."""
    shown = replace(options, token="(given)" if options.token else "")
    return {name: getattr(shown, name) for name in ServeOptions.__dataclass_fields__}
