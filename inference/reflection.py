"""Server reflection, over all descriptor pools that the server's services lie in."""

from collections.abc import Iterable

import grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from mapseek.oip import open_inference_pb2
from mapseek.v1 import embedding_pb2

SERVICE_NAME: str = reflection.SERVICE_NAME

_FILES = (embedding_pb2, open_inference_pb2, health_pb2, reflection_pb2)


def enable(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Lets callers ask which services there are, and how they are called."""
    # The stubs of the Open Inference Protocol have a pool of their own, see the Makefile.
    pool = DescriptorPool()
    for module in _FILES:
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    reflection.enable_server_reflection([*services, SERVICE_NAME], server, pool)
