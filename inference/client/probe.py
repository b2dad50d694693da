"""Asks a server for its health, as an orchestrator does: without a token, and only once."""

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference.client.channel import open_channel
from inference.client.settings import ClientSettings


async def is_serving(settings: ClientSettings, *, timeout_s: float) -> bool:
    """Whether the server says SERVING within this time.

    Raises:
        StartupError: A TLS file cannot be read.
    """
    async with open_channel(settings) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
