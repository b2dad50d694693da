"""The channel to one server, or to many behind one name."""

import json
from pathlib import Path

import grpc
import grpc.aio
from mapseek.v1 import embedding_pb2 as pb

from inference import telemetry
from inference.access import is_local
from inference.client.settings import ClientSettings
from inference.errors import StartupError

_SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["EmbeddingService"].full_name

# Every address behind the name gets its turn, but for those whose health says NOT_SERVING.
_BALANCING: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
_SERVICE_CONFIG = json.dumps({**_BALANCING, "healthCheckConfig": {"serviceName": _SERVICE_NAME}})
# What Triton and others call their health differs, and an unknown name counts as unhealthy.
_OPEN_SERVICE_CONFIG = json.dumps(_BALANCING)


def open_channel(settings: ClientSettings) -> grpc.aio.Channel:
    """Opens a channel; it connects on the first call. Call it on the event loop.

    Raises:
        StartupError: A TLS file cannot be read.
    """
    options: list[tuple[str, str | int]] = [
        (
            "grpc.service_config",
            _OPEN_SERVICE_CONFIG if settings.open_inference else _SERVICE_CONFIG,
        ),
        # What may be sent is the server's to say, see `Limits`; answers are small.
        ("grpc.max_send_message_length", -1),
        # A server that vanished without a word is noticed within 40 s, even by a waiting call.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # gRPC's own pauses between connections grow to two minutes: too long for a restart.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Connections of its own, whatever else this process has open to the same server.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if is_local(settings.address):
        options.append(("grpc.enable_http_proxy", 0))
    interceptors = telemetry.client_interceptors()
    if not settings.secure:
        return grpc.aio.insecure_channel(settings.target, options, interceptors=interceptors)
    credentials = grpc.ssl_channel_credentials(
        _read(settings.tls_ca, "MAPSEEK_TLS_CA"),
        _read(settings.tls_client_key, "MAPSEEK_TLS_CLIENT_KEY"),
        _read(settings.tls_client_cert, "MAPSEEK_TLS_CLIENT_CERT"),
    )
    return grpc.aio.secure_channel(settings.target, credentials, options, interceptors=interceptors)


def _read(path: Path | None, variable: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"{variable}: {path} cannot be read: {error.strerror}.") from error
