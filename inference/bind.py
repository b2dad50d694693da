"""Where and how the server listens: gRPC's options, TLS, and the port."""

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from inference.errors import StartupError
from inference.settings import ServerSettings

_MINUTE_MS = 60_000
_WINDOW_BYTES = 4 * 1024 * 1024


def channel_options(settings: ServerSettings) -> Sequence[tuple[str, int]]:
    """GRPC's options, chosen so that no single client can exhaust the process."""
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # Identity only. Images are compressed already, and a message is measured before it is
        # unpacked: gzip would let a few kilobytes grow into a thousand times their size.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Two servers on one port would share its callers by chance, unnoticed.
        ("grpc.so_reuseport", 0),
        # Calls of one connection; more wait on the client's side.
        ("grpc.max_concurrent_streams", max(128, 2 * settings.queue_size)),
        ("grpc.max_metadata_size", 16 * 1024),
        # What one call may have sent that the server has not read. Left to measure what the network
        # could carry, gRPC takes in a hundred megabytes of a stream that sends faster than images
        # are embedded.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        # An image in one frame rather than in six.
        ("grpc.http2.max_frame_size", 1024 * 1024),
        # Peers that vanished without a word are noticed within 80 s.
        ("grpc.keepalive_time_ms", _MINUTE_MS),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A client may ping every 10 s; who pings more often is told ENHANCE_YOUR_CALM.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 3),
        # Unused connections go; old ones are renewed, so that clients spread over new servers
        # and a call that never ends does end.
        ("grpc.max_connection_idle_ms", 15 * _MINUTE_MS),
        ("grpc.max_connection_age_ms", 60 * _MINUTE_MS),
        ("grpc.max_connection_age_grace_ms", 10 * _MINUTE_MS),
    ]


def wait_in_one_place(server: grpc.aio.Server) -> None:
    """Makes a server wait for calls of all methods together; before services are added to it.

    Generated code asks gRPC to wait for calls of each method apart, beside handlers for them all.
    It then looks at every place where it waits at every call: 0.2 ms for the twenty methods here.
    """

    def pass_over(service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """They were added by `add_generic_rpc_handlers` as well."""

    server.add_registered_method_handlers = pass_over  # type: ignore[method-assign]


def listen(server: grpc.aio.Server, settings: ServerSettings) -> str:
    """Binds the server's port and returns the address, with the port that was taken for port 0.

    Raises:
        StartupError: The address cannot be bound, or a TLS file cannot be read or used.
    """
    address = settings.listen
    if address.startswith("unix:") and _answers(address.removeprefix("unix:")):
        # gRPC would take the path from whoever listens there, who would remove it when it ends.
        raise StartupError(_cannot_listen(address, os.strerror(errno.EADDRINUSE)))
    try:
        if settings.tls:
            port = server.add_secure_port(address, _credentials(settings))
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(_why_not(settings)) from error
    if address.startswith("unix:"):
        return address
    host = address.rpartition(":")[0]
    return f"{host}:{port}"


def _credentials(settings: ServerSettings) -> grpc.ServerCredentials:
    certificate = _pem(settings.tls_cert, "MAPSEEK_TLS_CERT")
    key = _pem(settings.tls_key, "MAPSEEK_TLS_KEY")
    client_ca = None
    if settings.tls_client_ca is not None:
        client_ca = _pem(settings.tls_client_ca, "MAPSEEK_TLS_CLIENT_CA")
    return grpc.ssl_server_credentials(
        [(key, certificate)], client_ca, require_client_auth=client_ca is not None
    )


def _pem(path: Path | None, variable: str) -> bytes:
    assert path is not None  # noqa: S101  the settings see to it
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StartupError(f"{variable}: {path} cannot be read: {error.strerror}.") from error
    if b"-----BEGIN " not in data:
        raise StartupError(f"{variable}: {path} is no PEM file.")
    return data


def _why_not(settings: ServerSettings) -> str:
    """What keeps a port from being bound, which gRPC tells only in its debug log."""
    address = settings.listen
    reason = None
    try:
        _try_to_bind(address)
    except (OSError, UnicodeError) as error:  # the latter of a name that no host can have
        reason = getattr(error, "strerror", None) or str(error)
    if reason is None and settings.tls:
        reason = "the certificate and the key do not fit together, or are damaged"
    return _cannot_listen(address, reason or "gRPC gives no reason")


def _cannot_listen(address: str, reason: str) -> str:
    return f"MAPSEEK_LISTEN: cannot listen on {address}: {reason}."


def _answers(path: str) -> bool:
    """Whether somebody listens at the path, and did not just leave it behind."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(path)
        return True
    return False


def _try_to_bind(address: str) -> None:
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(path)
        Path(path).unlink()
        return
    host, _, port = address.rpartition(":")
    for family, kind, protocol, _, target in socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM
    ):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
