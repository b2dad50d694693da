"""The server's composition root: settings ▶ port ▶ model ▶ pipeline ▶ service ▶ health, and back.

The port is bound before the model is loaded. A taken port is then known at once and not after
minutes of building TensorRT engines, and probes hear NOT_SERVING from the first moment instead of
a refused connection. Calls are answered UNAVAILABLE until the warm-up has passed.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2_grpc
from mapseek.oip.open_inference_pb2 import ModelInferRequest
from mapseek.v1 import embedding_pb2 as pb

from inference import bind, heap, probes, reflection, service, telemetry
from inference.artifact import Artifact, Manifest
from inference.auth import TokenInterceptor
from inference.cores import usable_cores
from inference.engine import (
    Engine,
    EngineOptions,
    Pixels,
    TextEngine,
    load_image_engine,
    load_text_engine,
)
from inference.errors import EngineLostError, StartupError
from inference.fields import Buffer
from inference.handlers import add_to
from inference.listening import Listener
from inference.malformed import MalformedInterceptor
from inference.oip import service as oip
from inference.oip import wire
from inference.pipeline import Limits, Pipeline
from inference.preprocess import Preprocessor
from inference.probes import ProbeService
from inference.quota import Quota, QuotaInterceptor
from inference.service import Backend, EmbeddingService
from inference.settings import ServerSettings
from inference.telemetry import TelemetrySettings
from inference.threads import LaneThreads

EXIT_DRAINED = 0
EXIT_CRASHED = 1
EXIT_CONFIGURATION = os.EX_CONFIG
"""78: the operator must change something; starting again will not help."""
EXIT_ENGINE_HUNG = os.EX_TEMPFAIL
"""75: a run of the model did not return; starting again is all that helps."""
EXIT_ENGINE_FAILED = os.EX_SOFTWARE
"""70: the model failed on what it could do before; starting again may help."""

# How long the last answers and statuses may take to reach their callers once all work is done.
_FLUSH_S = 1.0
# How long a thread may take to end, and what threads that call libraries are named.
_END_S = 1.0
_OUR_THREADS = frozenset({"core", "bulk", "engine", "decode", "load"})

_log = logging.getLogger("mapseek.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in memory, not yet warm.

    Attributes:
        manifest: What it is.
        images: Its image tower.
        texts: Its text tower, where it has one.
        preprocess: Encoded bytes to the image tower's pixels.
    """

    manifest: Manifest
    images: Engine
    texts: TextEngine | None
    preprocess: Callable[[Buffer], Pixels]


def load_model(settings: ServerSettings) -> LoadedModel:
    """Loads the model folder; blocking.

    Raises:
        StartupError: The folder is no model, or the provider cannot run it.
    """
    artifact = Artifact.load(settings.model)
    options = EngineOptions(
        provider=settings.provider,
        threads=settings.engine_threads,
        max_batch=settings.max_batch,
        gpu_memory_limit_bytes=settings.gpu_memory_limit_bytes,
        tensorrt_cache=settings.tensorrt_cache,
        cuda_graph=settings.cuda_graph,
    )
    return LoadedModel(
        manifest=artifact.manifest,
        images=load_image_engine(artifact, options),
        texts=load_text_engine(artifact, options),
        preprocess=Preprocessor(
            artifact.manifest.preprocessing,
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
        ),
    )


class RunningServer:
    """A server that listens; `serve` makes it.

    Attributes:
        address: Where it listens, with the real port.
    """

    def __init__(
        self, settings: ServerSettings, load: Callable[[ServerSettings], LoadedModel]
    ) -> None:
        self._settings = settings
        self._load = load
        self._probes = ProbeService(["", service.SERVICE_NAME, oip.SERVICE_NAME])
        limits = pb.Limits(
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_message_bytes=settings.max_message_bytes,
            max_text_chars=settings.max_text_chars,
        )
        self._service = EmbeddingService(
            limits=limits,
            stream_window=settings.stream_window,
            stream_idle_s=settings.stream_idle_s,
        )
        max_batch = settings.queue_size - settings.queue_size // 4  # what bulk may take
        self._oip = oip.OpenInferenceService(
            answering=self._service.answering,
            serving=lambda: self._probes.serving,
            limits=limits,
            max_batch=max_batch,
            stream_window=settings.stream_window,
            stream_idle_s=settings.stream_idle_s,
        )
        self._pipeline: Pipeline | None = None
        self._ready = asyncio.Event()
        # Once, so that listening anew, which a stranger can bring about, gives nobody a new quota.
        self._guards = _guards(settings, max_batch=max_batch)
        self._listener = Listener(self._build, settings)
        self.address = self._listener.address

    async def start(self) -> None:
        """Starts answering, and loading the model."""
        await self._listener.start()
        _log.info("listening on %s, loading %s", self.address, self._settings.model)
        self._life = asyncio.create_task(self._live(), name="server")
        self._listening = asyncio.create_task(self._listener.keep(), name="listening")

    @property
    def serving(self) -> bool:
        """What health probes are told."""
        return self._probes.serving

    @property
    def calls(self) -> int:
        """How many calls of the embedding service are running."""
        return self._service.calls

    async def ready(self) -> None:
        """Waits until the model is loaded and warm.

        Raises:
            StartupError: It cannot be loaded.
        """
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._life}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not self._ready.is_set():
            await self._life

    async def ended(self) -> None:
        """Waits until the server cannot go on, and raises why.

        Raises:
            StartupError: The model cannot be loaded.
            EngineLostError: The model hangs or fails for good.
            Exception: A loop broke, which is a bug.
        """
        tasks = {self._life, self._listening}
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        done.pop().result()

    async def stop(self) -> None:
        """Refuses what is new, lets running calls finish within `drain_s`, and stops."""
        self._listening.cancel()
        self._probes.close()
        self._service.close()
        self._oip.close()
        drain_s = 0.0 if self._life.done() else self._settings.drain_s
        try:
            async with asyncio.timeout(drain_s):
                await self._service.drained()
        except TimeoutError:
            _log.warning("%d calls did not finish within %g s and are cut off", self.calls, drain_s)
        if self._pipeline is not None:
            await self._pipeline.close(grace_s=0.0)
        await self._listener.stop(_FLUSH_S)
        self._life.cancel()
        # Whatever it ended with has been told by `ready` or `ended`.
        with suppress(asyncio.CancelledError, Exception):
            await self._life
        gc.unfreeze()

    def _build(self) -> grpc.aio.Server:
        settings = self._settings
        server = grpc.aio.server(
            interceptors=self._guards,
            options=bind.channel_options(settings),
            # A far outer guard, which refuses even health probes; admission is the real bound.
            maximum_concurrent_rpcs=max(512, 4 * settings.queue_size),
        )
        bind.wait_in_one_place(server)
        add_to(server, service.SERVICE, self._service, parse={pb.EmbedRequest: service.parse})
        health_pb2_grpc.add_HealthServicer_to_server(self._probes, server)
        add_to(server, oip.SERVICE, self._oip, parse={ModelInferRequest: wire.parse})
        reflection.enable(server, [service.SERVICE_NAME, oip.SERVICE_NAME, probes.SERVICE_NAME])
        return server

    async def _live(self) -> None:
        """Loads the model and answers with it until it is closed or breaks."""
        settings = self._settings
        loader = LaneThreads(1, name="load")
        # Abandoned if the server is stopped meanwhile: a load cannot be interrupted.
        model = (await loader.run(lambda: self._load(settings), abandon=True)).value
        loader.stop()
        pipeline = self._pipeline = Pipeline(
            images=model.images,
            preprocess=model.preprocess,
            texts=model.texts,
            limits=Limits(
                slots=settings.queue_size,
                reserved_slots=settings.queue_size // 4,
                decode_threads=settings.decode_threads or usable_cores(),
                watchdog_s=settings.watchdog_s,
                grace_s=settings.watchdog_grace_s or None,
            ),
            on_health=self._on_health,
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(pipeline.serve(), name="pipeline")
                await pipeline.warm_up()
                self._open(
                    Backend(
                        pipeline=pipeline, manifest=model.manifest, provider=model.images.provider
                    )
                )
        except BaseExceptionGroup as errors:
            error: BaseException = errors
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    def _open(self, backend: Backend) -> None:
        heap.keep_middling_pieces()
        heap.pass_over_what_stays()
        self._oip.open(backend)
        self._service.open(backend)
        self._ready.set()
        self._on_health(backend.pipeline.healthy, "")
        _log.info(
            "serving %s on %s with %s", backend.manifest.model_id, self.address, backend.provider
        )

    def _on_health(self, healthy: bool, _: str) -> None:  # noqa: FBT001  the pipeline's callback
        self._probes.set_serving(serving=healthy and self._ready.is_set())


def _guards(settings: ServerSettings, *, max_batch: int) -> list[grpc.aio.ServerInterceptor]:
    """What every call passes before it is answered, the outermost first."""
    interceptors = telemetry.server_interceptors()
    interceptors.append(
        MalformedInterceptor(
            service.SERVICE_NAME,
            oip.SERVICE_NAME,
            probes.SERVICE_NAME,
            reflection.SERVICE_NAME,
            bounds={
                f"/{service.SERVICE_NAME}/EmbedStream": service.STREAM_BOUND,
                f"/{oip.SERVICE_NAME}/ModelInfer": wire.bound(max_batch),
                f"/{oip.SERVICE_NAME}/ModelStreamInfer": wire.bound(max_batch),
            },
        )
    )
    tokens = settings.tokens()
    if tokens:
        interceptors.append(TokenInterceptor(tokens))
    if settings.max_calls_per_client or settings.max_rate_per_client:
        quota = Quota(
            max_calls=settings.max_calls_per_client, images_per_s=settings.max_rate_per_client
        )
        interceptors.append(QuotaInterceptor(quota, by_token=len(tokens) > 1, max_batch=max_batch))
    return interceptors


@asynccontextmanager
async def serve(
    settings: ServerSettings, *, load: Callable[[ServerSettings], LoadedModel] | None = None
) -> AsyncIterator[RunningServer]:
    """Listens and answers until the context is left, then drains.

    The port answers as soon as this returns; `RunningServer.ready` waits for the model.

    Args:
        settings: What the operator chose.
        load: Loads the model, on a thread of its own; `load_model` unless told otherwise.

    Raises:
        StartupError: The address cannot be bound, or a TLS file cannot be used.
    """
    server = RunningServer(settings, load or load_model)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def run(
    settings: ServerSettings, *, load: Callable[[ServerSettings], LoadedModel] | None = None
) -> int:
    """Serves until SIGTERM or SIGINT, then drains; a second signal kills.

    Args:
        settings: What the operator chose.
        load: Loads the model; `load_model` unless told otherwise.

    Returns:
        The exit status: 0 after draining, 78 if the server could not start (with one sentence
        on stderr), 70 if the model failed for good, 1 if the server broke (with a traceback in
        the log). Where a run of the model still goes on, as it does when it hangs for good (75),
        the process ends here: the thread that is in it would hold up or crash an orderly end.

    Raises:
        StartupError: A setting of the telemetry is wrong.
    """
    heap.give_back_large_pieces()
    telling = TelemetrySettings.load()
    try:
        with telemetry.set_up("mapseek-server", telling):
            try:
                uvloop.run(_serve_until_signal(settings, load))
            except StartupError:
                raise
            except EngineLostError as error:
                _log.critical("%s", error)
                status = EXIT_ENGINE_HUNG if error.hung else EXIT_ENGINE_FAILED
            except Exception:  # noqa: BLE001  logged; the exit status tells the supervisor
                _log.exception("the server broke")
                status = EXIT_CRASHED
            else:
                status = EXIT_DRAINED
    except StartupError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CONFIGURATION
    if status == EXIT_ENGINE_HUNG or _is_still_at_work():
        sys.stderr.flush()
        os._exit(status)
    return status


def _is_still_at_work() -> bool:
    """Whether a thread of ours is in a call, though all were told to end.

    Python ends such a thread when it comes back, in the middle of the library that it is in, and
    that aborts the process.
    """
    for thread in threading.enumerate():
        if thread.daemon and thread.name.partition("-")[0] in _OUR_THREADS:
            thread.join(_END_S)
            if thread.is_alive():
                return True
    return False


async def _serve_until_signal(
    settings: ServerSettings, load: Callable[[ServerSettings], LoadedModel] | None
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(one)
            signal.signal(one, signal.SIG_DFL)
        _log.info("%s: draining for up to %g s; once more kills", number.name, settings.drain_s)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    async with serve(settings, load=load) as server:
        stopped = asyncio.create_task(stopping.wait())
        ended = asyncio.create_task(server.ended())
        await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if ended.done():
            ended.result()
            raise RuntimeError("the pipeline ended by itself")
        ended.cancel()
    _log.info("drained")
