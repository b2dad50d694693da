"""What Triton does with a model repository, as far as a client can see: a server for tests.

It knows nothing of mapseek: names, types, limits and parameters come from config.pbtxt, numbers
from onnxruntime, and the messages are those that Triton's own client is built on.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

_TYPES = {
    model_config_pb2.TYPE_UINT8: ("UINT8", np.uint8),
    model_config_pb2.TYPE_INT64: ("INT64", np.int64),
}


def read_config(model: Path) -> Any:
    """A model's config.pbtxt in Triton's published schema."""
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


class Repository(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves every model of a folder.

    Attributes:
        requests: What has been asked of the models.
        failures: Statuses to answer with, instead of the next answers.
        index: Whether RepositoryIndex is offered; it is no part of KServe's protocol.
        answer_version: Answers say this version instead of their own, where it is set.
        scale: Factor on every answer.
    """

    def __init__(self, folder: Path) -> None:
        self.requests: list[Any] = []
        self.failures: list[grpc.StatusCode] = []
        self.index = True
        self.answer_version = ""
        self.scale = 1.0
        self.load(folder)

    def load(self, folder: Path) -> None:
        """Takes up a repository in the place of the one before."""
        self.configs = {path.name: read_config(path) for path in folder.iterdir() if path.is_dir()}
        self._sessions = {}
        for name, config in self.configs.items():
            (version,) = config.version_policy.specific.versions
            graph = folder / name / str(version) / config.default_model_filename
            self._sessions[name] = onnxruntime.InferenceSession(graph)

    def version(self, name: str) -> str:
        return str(self.configs[name].version_policy.specific.versions[0])

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        if not self.index:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        answer = service_pb2.RepositoryIndexResponse()
        for name in self.configs:
            answer.models.add(name=name, version=self.version(name), state="READY")
        return answer

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        config = await self._config(request.name, context)
        answer = service_pb2.ModelMetadataResponse(
            name=config.name, versions=[self.version(config.name)], platform=config.platform
        )
        for tensor in config.input:
            kind = _TYPES[tensor.data_type][0]
            answer.inputs.add(name=tensor.name, datatype=kind, shape=[-1, *tensor.dims])
        for tensor in config.output:
            answer.outputs.add(name=tensor.name, datatype="FP32", shape=[-1, *tensor.dims])
        return answer

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        config = await self._config(request.name, context)
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.failures:
            await context.abort(self.failures.pop(0), "It was told to fail.")
        config = await self._config(request.model_name, context)
        ((given,), (tensor,)) = request.inputs, config.input
        datatype, dtype = _TYPES[tensor.data_type]
        if given.name != tensor.name or given.datatype != datatype:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected inference input")
        batch = np.frombuffer(request.raw_input_contents[0], dtype).reshape(given.shape)
        assert batch.shape[1:] == tuple(tensor.dims)
        assert len(batch) <= config.max_batch_size
        (rows,) = self._sessions[config.name].run([config.output[0].name], {tensor.name: batch})
        answer = service_pb2.ModelInferResponse(
            model_name=config.name,
            model_version=self.answer_version or self.version(config.name),
            id=request.id,
            raw_output_contents=[(rows * np.float32(self.scale)).tobytes()],
        )
        answer.outputs.add(name=config.output[0].name, datatype="FP32", shape=rows.shape)
        return answer

    async def _config(self, name: str, context: Any) -> Any:
        if name not in self.configs:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found"
            )
        return self.configs[name]


@asynccontextmanager
async def serving(repository: Repository) -> AsyncIterator[str]:
    """Serves a repository; gives HOST:PORT."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(repository, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
