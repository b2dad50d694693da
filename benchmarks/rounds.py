"""What `bench serve` measured, round by round, and what it comes to."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.latency import Latency
from benchmarks.limit import Pace, Recipe, Single
from benchmarks.load import Load, codes_of
from benchmarks.memory import MB
from benchmarks.report import Cell, Table, Target

_REFUSED = "RESOURCE_EXHAUSTED"
_NAN = float("nan")

# What is promised of the server with the bundled model on the CPU.
_MANY, _MIN_OF_LIMIT = 32, 0.95
_MIN_STREAM_OF_LIMIT = 0.97
_MAX_OF_SINGLE = 1.15
_HALF, _MAX_P99_OF_P50 = 0.5, 2.0
_OVERLOAD, _MIN_GOODPUT = 2.0, 0.95
_MAX_REFUSAL_MS = 50.0
_MAX_BESIDE_BULK = 2.0
_MAX_COLD_START_S = 3.0
_MAX_RESIDENT_MB = 400.0


@dataclass(slots=True, kw_only=True)
class Round:
    """The measurements of one round.

    Attributes:
        limit: The best arrangement without a server.
        single: One picture at a time without a server.
        closed: Closed loops, by callers.
        server_cpu_s: The server's CPU time over each closed loop, where its process is known.
        open: Open loops, by share of the capacity.
        rates: Requests per second of the open loops.
        stream: One EmbedStream that is kept full.
        beside_bulk: Open loops with such a stream beside them, by share of the capacity.
    """

    limit: Pace | None = None
    single: Single | None = None
    closed: dict[int, Load] = field(default_factory=dict)
    server_cpu_s: dict[int, float] = field(default_factory=dict)
    open: dict[float, Load] = field(default_factory=dict)
    rates: dict[float, float] = field(default_factory=dict)
    stream: Load | None = None
    beside_bulk: dict[float, Load] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Measured:
    """All rounds so far.

    Attributes:
        recipe: The best arrangement without a server.
        rounds: The last one may be unfinished.
        cold_start_s: From the start of the process to SERVING, where the server is ours.
        rss_at_start_bytes: Its resident memory after warm-up.
        rss_highest_bytes: The highest after any load.
        complete: Whether everything was measured.
    """

    recipe: Recipe | None = None
    rounds: list[Round] = field(default_factory=list)
    cold_start_s: float | None = None
    rss_at_start_bytes: int | None = None
    rss_highest_bytes: int | None = None
    complete: bool = True

    def capacity(self, callers: int) -> float:
        """Median throughput of the closed loops with this many callers."""
        return _median(
            now.closed[callers].throughput for now in self.rounds if callers in now.closed
        )

    def limit(self) -> float:
        """Median throughput without a server."""
        return _median(now.limit.throughput for now in self.rounds if now.limit)

    def ratio_to_limit(self, callers: int) -> float:
        """Throughput over the limit's, the median over the rounds."""
        return _median(
            now.closed[callers].throughput / now.limit.throughput
            for now in self.rounds
            if now.limit and callers in now.closed
        )

    def ratio_to_single(self, callers: int) -> float:
        """Median latency over that of one decode plus one run, the median over the rounds."""
        return _median(
            Latency.of(now.closed[callers].latencies_s).p50_ms
            / Latency.of(now.single.total_s).p50_ms
            for now in self.rounds
            if now.single and now.closed.get(callers) and now.closed[callers].latencies_s
        )

    def closed_latency(self, callers: int) -> Latency:
        """Latencies of all rounds' closed loops together."""
        return Latency.of(
            [
                s
                for now in self.rounds
                if callers in now.closed
                for s in now.closed[callers].latencies_s
            ]
        )

    def open_latency(self, share: float) -> Latency:
        """Latencies of all rounds' open loops together."""
        return Latency.of(
            [s for now in self.rounds if share in now.open for s in now.open[share].latencies_s]
        )

    def stream(self) -> float:
        """Median results a second of the EmbedStream."""
        return _median(now.stream.throughput for now in self.rounds if now.stream)

    def stream_to_limit(self) -> float:
        """Results of the EmbedStream over the limit's, the median over the rounds."""
        return _median(
            now.stream.throughput / now.limit.throughput
            for now in self.rounds
            if now.stream and now.limit
        )

    def bulk_latency(self, share: float) -> Latency:
        """Latencies of all rounds' open loops beside bulk together."""
        loads = [now.beside_bulk[share] for now in self.rounds if share in now.beside_bulk]
        return Latency.of([s for load in loads for s in load.latencies_s])

    def refusal(self, share: float) -> Latency:
        """How long it took to be told that the server is full."""
        loads = [now.open[share] for now in self.rounds if share in now.open]
        return Latency.of([s for load in loads for s in load.refused_s])

    def single_latency(self, part: Callable[[Single], Sequence[float]]) -> Latency:
        """A part of the work on one picture alone, over all rounds."""
        return Latency.of([s for now in self.rounds if now.single for s in part(now.single)])

    def tables(self) -> list[Table]:
        """The figures for people."""
        ours = [self._process()] if self.cold_start_s is not None else []
        return [self._throughput(), self._open_loops(), self._bulk(), *ours]

    def targets(self) -> list[Target]:
        """What was promised, of what was measured."""
        targets = []
        if _MANY in self.callers():
            name = f"throughput with {_MANY} callers at least {_MIN_OF_LIMIT:.2f} of the limit"
            targets.append(Target.at_least(name, self.ratio_to_limit(_MANY), _MIN_OF_LIMIT))
        if 1 in self.callers():
            name = f"p50 with 1 caller at most {_MAX_OF_SINGLE} x one decode plus one run"
            targets.append(Target.at_most(name, self.ratio_to_single(1), _MAX_OF_SINGLE))
        targets += self._open_targets()
        if not math.isnan(self.stream_to_limit()):
            name = f"one EmbedStream at least {_MIN_STREAM_OF_LIMIT} of the limit"
            targets.append(Target.at_least(name, self.stream_to_limit(), _MIN_STREAM_OF_LIMIT))
        for share in self._beside_shares():
            name = (
                f"p99 beside a full bulk stream at most {_MAX_BESIDE_BULK:g} x alone, at {share:g}"
            )
            ratio = self.bulk_latency(share).p99_ms / self.open_latency(share).p99_ms
            targets.append(Target.at_most(name, ratio, _MAX_BESIDE_BULK))
        if self.cold_start_s is not None:
            name = f"cold start to SERVING within {_MAX_COLD_START_S:g} s"
            targets.append(Target.at_most(name, self.cold_start_s, _MAX_COLD_START_S))
        if self.rss_highest_bytes is not None:
            name = f"resident memory of the server at most {_MAX_RESIDENT_MB:g} MB"
            targets.append(Target.at_most(name, self.rss_highest_bytes / MB, _MAX_RESIDENT_MB))
        return targets

    def _open_targets(self) -> list[Target]:
        targets = []
        shares = self.shares()
        if _HALF in shares:
            latency = self.open_latency(_HALF)
            name = f"p99 at half of the capacity at most {_MAX_P99_OF_P50:g} x p50"
            targets.append(Target.at_most(name, latency.p99_ms / latency.p50_ms, _MAX_P99_OF_P50))
        if _OVERLOAD in shares and self.callers():
            name = f"goodput at {_OVERLOAD:g} x the capacity at least {_MIN_GOODPUT} of it"
            ratio = _median(
                now.open[_OVERLOAD].throughput / (now.rates[_OVERLOAD] / _OVERLOAD)
                for now in self.rounds
                if _OVERLOAD in now.open
            )
            targets.append(Target.at_least(name, ratio, _MIN_GOODPUT))
            name = f"there, refused within {_MAX_REFUSAL_MS:g} ms (p99)"
            targets.append(Target.at_most(name, self.refusal(_OVERLOAD).p99_ms, _MAX_REFUSAL_MS))
        return targets

    def data(self) -> dict[str, Any]:
        """The figures for machines, and every single measurement but the latencies."""
        return {
            "recipe": self.recipe,
            "limit_images_per_s": self.limit(),
            "single": {
                "decode": self.single_latency(lambda single: single.decode_s),
                "run": self.single_latency(lambda single: single.run_s),
                "total": self.single_latency(lambda single: single.total_s),
            },
            "closed": [
                {
                    "callers": callers,
                    "images_per_s": self.capacity(callers),
                    "ratio_to_limit": self.ratio_to_limit(callers),
                    "ratio_to_single": self.ratio_to_single(callers),
                    "latency": self.closed_latency(callers),
                    "server_cpu_ms_per_image": self._server_cpu_ms(callers),
                    "load_cpu_cores": self._load_cpu(callers),
                    "codes": codes_of(now.closed.get(callers) for now in self.rounds),
                }
                for callers in self.callers()
            ],
            "open": [
                {
                    "share": share,
                    "rate": self.rate(share),
                    "goodput": self._goodput(share),
                    "refusal": self.refusal(share),
                    "latency": self.open_latency(share),
                    "latest_departure_ms": self._lateness_ms(share),
                    "codes": codes_of(now.open.get(share) for now in self.rounds),
                }
                for share in self.shares()
            ],
            "stream": {
                "images_per_s": self.stream(),
                "ratio_to_limit": self.stream_to_limit(),
            },
            "beside_bulk": [
                {
                    "share": share,
                    "latency": self.bulk_latency(share),
                    "bulk_images_per_s": self._bulk_rate(share),
                }
                for share in self._beside_shares()
            ],
            "rounds": [
                {
                    "limit_images_per_s": now.limit.throughput if now.limit else None,
                    "single_p50_ms": Latency.of(now.single.total_s).p50_ms if now.single else None,
                    "closed_images_per_s": {n: load.throughput for n, load in now.closed.items()},
                    "open_goodput": {n: load.throughput for n, load in now.open.items()},
                }
                for now in self.rounds
            ],
            "cold_start_s": self.cold_start_s,
            "rss_at_start_bytes": self.rss_at_start_bytes,
            "rss_highest_bytes": self.rss_highest_bytes,
        }

    def _throughput(self) -> Table:
        single = self.single_latency(lambda single: single.total_s)
        limit_cpu_ms = _median(now.limit.cpu_ms_per_image for now in self.rounds if now.limit)
        rows: list[Sequence[Cell]] = [
            ("no server, best", self.limit(), 1.0, *_percentiles(None), None, limit_cpu_ms),
            (
                "no server, one by one",
                1000 / single.mean_ms if single.count else None,
                None,
                *_percentiles(single),
                1.0,
                None,
            ),
        ]
        rows += [
            (
                f"{callers} caller" + "s" * (callers > 1),
                self.capacity(callers),
                self.ratio_to_limit(callers),
                *_percentiles(self.closed_latency(callers)),
                self.ratio_to_single(callers),
                self._server_cpu_ms(callers),
            )
            for callers in self.callers()
        ]
        notes = [f"no server, best: {self.recipe}"] if self.recipe else []
        notes += [
            f"{callers} callers took {self._load_cpu(callers):.2f} cores for themselves"
            for callers in self.callers()[-1:]
        ]
        notes += [
            f"not answered well, {callers} callers: {_told(codes)}"
            for callers in self.callers()
            if (codes := codes_of(now.closed.get(callers) for now in self.rounds)).keys() - {"OK"}
        ]
        return Table(
            title="Closed loop: who has an answer sends the next request",
            columns=(
                "",
                "images/s",
                "x limit",
                "p50 ms",
                "p90 ms",
                "p99 ms",
                "p50 x one by one",
                "CPU ms/image",
            ),
            rows=rows,
            notes=notes,
        )

    def _open_loops(self) -> Table:
        late_ms = max(map(self._lateness_ms, self.shares()), default=0.0)
        rows: list[Sequence[Cell]] = []
        for share in self.shares():
            codes = codes_of(now.open.get(share) for now in self.rounds)
            sent = sum(codes.values())
            refused = codes.get(_REFUSED, 0)
            failed = sent - refused - codes.get("OK", 0)
            rows.append(
                (
                    f"{share:g} x capacity",
                    self.rate(share),
                    self._goodput(share),
                    *_percentiles(self.open_latency(share)),
                    100 * refused / sent if sent else None,
                    100 * failed / sent if sent else None,
                )
            )
        return Table(
            title="Open loop: Poisson arrivals, latency from the intended moment of sending",
            columns=(
                "load",
                "sent/s",
                "answered/s",
                "p50 ms",
                "p90 ms",
                "p99 ms",
                "refused %",
                "failed %",
            ),
            rows=rows,
            notes=[f"the latest request left {late_ms:.1f} ms after its moment"],
        )

    def _bulk(self) -> Table:
        rows: list[Sequence[Cell]] = [
            ("one EmbedStream, kept full", self.stream(), self.stream_to_limit(), None, None, None)
        ]
        for share in self._beside_shares():
            alone, beside = self.open_latency(share), self.bulk_latency(share)
            rows += [
                (f"calls at {share:g} x capacity, alone", None, None, *_percentiles(alone)),
                (
                    f"calls at {share:g} x capacity, the stream beside",
                    self._bulk_rate(share),
                    None,
                    *_percentiles(beside),
                ),
            ]
        return Table(
            title="Bulk: several images a message, and single calls beside it",
            columns=("", "bulk images/s", "x limit", "p50 ms", "p90 ms", "p99 ms"),
            rows=rows,
        )

    def _beside_shares(self) -> list[float]:
        return sorted(
            {share for now in self.rounds for share in now.beside_bulk if share in now.open}
        )

    def _bulk_rate(self, share: float) -> float:
        return _median(
            now.beside_bulk[share].bulk for now in self.rounds if share in now.beside_bulk
        )

    def _process(self) -> Table:
        def megabytes(size: int | None) -> Cell:
            return size / MB if size is not None else None

        return Table(
            title="The server's process",
            columns=("", ""),
            rows=[
                ("cold start to SERVING, s", self.cold_start_s),
                ("resident memory after warm-up, MB", megabytes(self.rss_at_start_bytes)),
                ("resident memory after a load, highest, MB", megabytes(self.rss_highest_bytes)),
            ],
        )

    def callers(self) -> list[int]:
        """Numbers of callers that were measured."""
        return sorted({callers for now in self.rounds for callers in now.closed})

    def shares(self) -> list[float]:
        """Shares of the capacity that were measured."""
        return sorted({share for now in self.rounds for share in now.open})

    def rate(self, share: float) -> float:
        """Median rate of the open loops at this share, in requests per second."""
        return _median(now.rates[share] for now in self.rounds if share in now.open)

    def _goodput(self, share: float) -> float:
        return _median(now.open[share].throughput for now in self.rounds if share in now.open)

    def _lateness_ms(self, share: float) -> float:
        return max(now.open[share].late_s * 1000 for now in self.rounds if share in now.open)

    def _server_cpu_ms(self, callers: int) -> float:
        return _median(
            now.server_cpu_s[callers] / now.closed[callers].answered * 1000
            for now in self.rounds
            if callers in now.server_cpu_s and now.closed[callers].answered
        )

    def _load_cpu(self, callers: int) -> float:
        return _median(
            now.closed[callers].cpu_s / now.closed[callers].seconds
            for now in self.rounds
            if callers in now.closed
        )


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else _NAN


def _percentiles(latency: Latency | None) -> tuple[Cell, Cell, Cell]:
    if latency is None:
        return None, None, None
    return latency.p50_ms, latency.p90_ms, latency.p99_ms


def _told(codes: dict[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in sorted(codes.items()) if code != "OK")
