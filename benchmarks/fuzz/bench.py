"""`mapseek bench fuzz`: spoilt pictures for the decoder, spoilt messages and frames for the server.

The same seed spoils the same things in the same order. Whatever breaks a promise is written into a
folder, to be made a test of.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fuzz.calls import try_server
from benchmarks.fuzz.messages import Corpus, methods
from benchmarks.fuzz.mutations import seeds, spoilt
from benchmarks.fuzz.seen import MOST_CPU_S, Seen, judge, peak_mb
from benchmarks.machine import this_machine
from benchmarks.memory import MB, rss_bytes
from benchmarks.report import Progress, Report
from benchmarks.server_process import run_server
from benchmarks.valid import questions
from inference.artifact import Artifact
from inference.errors import InvalidInputError
from inference.oip.models import image_model_name
from inference.preprocess import Preprocessor

# Small, so that a picture that asks for more is refused, and one that gets more is noticed.
MAX_PIXELS = 4_000_000
MAX_BYTES = 1024 * 1024
# Of each round: a valid call follows so many spoilt pictures and a fifth as many spoilt calls.
_PICTURES = 25
_CALLS = _PICTURES // 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FuzzOptions:
    """How long, and where findings go.

    Attributes:
        model: The model folder to serve.
        minutes: How long it goes on.
        examples: Instead: this many spoilt pictures, and a fifth of it spoilt calls.
        out: Folder for what broke a promise.
        seed: Decides what is spoilt how.
    """

    model: Path
    minutes: float = 1.0
    examples: int | None = None
    out: Path = Path("results/fuzz")
    seed: int = 0


def bench_fuzz(options: FuzzOptions, progress: Progress) -> Report:
    """Spoils things and watches what becomes of them.

    Raises:
        StartupError: The model cannot be loaded, or the server does not start.
    """
    artifact = Artifact.load(options.model)
    corpus = list(seeds().items())
    (question, *_) = questions(artifact, [corpus[0][1]])
    preprocess = Preprocessor(
        artifact.manifest.preprocessing, max_image_bytes=MAX_BYTES, max_image_pixels=MAX_PIXELS
    )
    offered = methods(image_model_name(artifact.manifest))
    seen = Seen()
    limits = {"max_image_bytes": str(MAX_BYTES), "max_image_pixels": str(MAX_PIXELS)}
    with run_server(options.model, {**limits, "log_level": "error"}) as server:
        before_mb = peak_mb()
        chance = random.Random(options.seed)
        complete = True
        try:
            for share in _rounds(options):
                progress(f"{seen.spoilt} spoilt", share)
                for _ in range(_PICTURES):
                    try_picture(preprocess, corpus, chance, seen)
                spoil = try_server(
                    server, offered, corpus, chance, question=question, seen=seen, calls=_CALLS
                )
                asyncio.run(spoil)
                if not server.alive:
                    break
        except KeyboardInterrupt:
            complete = False
        seen.growth_mb = peak_mb() - before_mb
        if server.alive:
            served_mb = (rss_bytes(server.pid) - server.rss_at_start_bytes) / MB
            seen.growth_mb = max(seen.growth_mb, served_mb)
    seen.keep(options.out)
    return Report(
        command="mapseek bench fuzz",
        machine=this_machine(),
        model_id=artifact.manifest.model_id,
        settings={name: getattr(options, name) for name in FuzzOptions.__dataclass_fields__},
        tables=[seen.table()],
        targets=judge(seen, exit_status=server.process.returncode),
        data={
            "endings": seen.endings,
            "findings": {name: why for name, (_, why) in seen.findings.items()},
            "slowest_s": seen.slowest_s,
            "growth_mb": seen.growth_mb,
        },
        complete=complete,
    )


def try_picture(
    preprocess: Preprocessor, corpus: Corpus, chance: random.Random, seen: Seen
) -> None:
    """Spoils a picture and decodes it."""
    (name, data), (_, other) = chance.choice(corpus), chance.choice(corpus)
    data = spoilt(data, other, chance)
    started = time.thread_time()
    ending = "decoded"
    try:
        pixels = preprocess(data)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:  # noqa: PLR2004
            seen.found("pixels", data, f"{name}: {pixels.dtype} {pixels.shape}")
    except InvalidInputError:
        ending = "refused"
    except Exception as error:  # noqa: BLE001  that is what is looked for
        ending = type(error).__name__
        seen.found("picture", data, f"{name}: {error!r}")
    took_s = time.thread_time() - started
    if took_s > MOST_CPU_S:
        seen.found("slow", data, f"{name}: {took_s:.1f} s of processor time")
    seen.slowest_s = max(seen.slowest_s, took_s)
    seen.endings[name.partition(",")[0]][ending] += 1


def _rounds(options: FuzzOptions) -> Iterator[float]:
    """Goes on for as long as is asked, and yields which share is over."""
    if options.examples is not None:
        rounds = max(1, options.examples // _PICTURES)
        yield from (number / rounds for number in range(rounds))
        return
    begin, length_s = time.monotonic(), options.minutes * 60
    for _ in itertools.count():
        elapsed_s = time.monotonic() - begin
        if elapsed_s > length_s:
            return
        yield elapsed_s / length_s
