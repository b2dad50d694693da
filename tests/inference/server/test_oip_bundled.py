"""Triton's client, unchanged, against a server process with the bundled model."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc
from tritonclient.utils import InferenceServerException

from benchmarks.server_process import run_server
from inference.artifact import Artifact
from inference.preprocess import Preprocessor
from inference.settings import BUNDLED_MODEL
from tests.inference.core.pictures import encoded, scene

MODEL = "mapseek-small"
PICTURES = [
    encoded(scene(300, 200), "JPEG"),
    encoded(scene(64, 128), "PNG"),
    encoded(scene(200, 200), "WEBP"),
    encoded(scene(120, 90, "RGBA"), "PNG"),
]
ROUNDING = 1e-6 * 512**0.5
"""A batch adds up in another order: as far as 512 numbers that are off by 1e-6 each."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with run_server(BUNDLED_MODEL, {"max_image_bytes": str(1024 * 1024)}) as server:
        yield server.address


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def expected(address: str) -> Any:
    """What `mapseek.v1` says of the pictures."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        return np.array(
            [stub.Embed(pb.EmbedRequest(image=one)).embedding.values for one in PICTURES]
        )


@pytest.fixture(scope="module")
def pixels() -> Any:
    """The pictures as the tower reads them."""
    preprocess = Preprocessor(
        Artifact.load(BUNDLED_MODEL).manifest.preprocessing,
        max_image_bytes=1024 * 1024,
        max_image_pixels=1024 * 1024,
    )
    return np.stack([preprocess(one) for one in PICTURES])


def tensor(name: str, values: Any, datatype: str, shape: list[int] | None = None) -> Any:
    given = triton.InferInput(name, shape or list(values.shape), datatype)
    given.set_data_from_numpy(values)
    return given


def objects(elements: list[bytes], *shape: int) -> Any:
    return np.array(elements, dtype=np.object_).reshape(shape or (len(elements),))


def distances(answer: Any, expected: Any) -> Any:
    """How far apart the vectors of each picture are."""
    assert answer.shape == expected.shape
    return np.linalg.norm(answer - expected, axis=1)


def test_it_is_live_and_ready_and_tells_what_it_has(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    metadata = client.get_server_metadata()
    assert (metadata.name, bool(metadata.version)) == ("mapseek", True)
    assert "statistics" in metadata.extensions
    described = client.get_model_metadata(MODEL, as_json=True)
    assert described["inputs"][1]["shape"] == ["-1", "192", "192", "3"]
    assert described["outputs"] == [
        {"name": "image_embeds", "datatype": "FP32", "shape": ["-1", "512"]}
    ]
    assert client.get_model_config(MODEL).config.name == MODEL
    assert [one.name for one in client.get_model_repository_index().models] == [
        MODEL,
        f"{MODEL}_pixels",
    ]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_batch_of_images_equals_mapseek_v1(
    client: Any, expected: Any, shape: tuple[int, ...]
) -> None:
    outputs = [triton.InferRequestedOutput("image_embeds")]
    given = [tensor("images", objects(PICTURES, *shape), "BYTES")]
    answer = client.infer(MODEL, given, outputs=outputs).as_numpy("image_embeds")
    assert answer.dtype == np.float32
    assert (distances(answer, expected) < ROUNDING).all()


@pytest.mark.parametrize("model", [MODEL, f"{MODEL}_pixels"])
def test_a_batch_of_pixels_equals_mapseek_v1(
    client: Any, expected: Any, pixels: Any, model: str
) -> None:
    answer = client.infer(model, [tensor("pixels", pixels, "UINT8")]).as_numpy("image_embeds")
    assert (distances(answer, expected) < ROUNDING).all()


def test_an_asynchronous_call_and_a_stream(client: Any, expected: Any) -> None:
    answers: list[tuple[Any, Any]] = []
    done = threading.Semaphore(0)

    def take(result: Any, error: Any) -> None:
        answers.append((result, error))
        done.release()

    given = [tensor("images", objects(PICTURES[:1]), "BYTES")]
    client.async_infer(MODEL, given, take)
    assert done.acquire(timeout=60)
    client.start_stream(take)
    client.async_stream_infer(MODEL, given)
    client.async_stream_infer(MODEL, [tensor("images", objects([b"nothing"]), "BYTES")])
    assert done.acquire(timeout=60)
    assert done.acquire(timeout=60)
    client.stop_stream()
    (first, _), (second, _), (_, error) = answers
    for result in (first, second):
        np.testing.assert_allclose(result.as_numpy("image_embeds"), expected[:1], atol=1e-6)
    assert "images[0]" in error.message()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (tensor("images", np.zeros((1, 1), np.float32), "FP32"), "must have BYTES"),
        (tensor("pixels", np.zeros((1, 3, 192, 192), np.uint8), "UINT8"), "192, 192, 3"),
        (tensor("pixels", np.zeros((1, 192, 192, 3), np.float32), "FP32"), "must have UINT8"),
        (tensor("image", objects([b"x"]), "BYTES"), "no input 'image'"),
        (tensor("images", objects([PICTURES[0], PICTURES[1][:99]]), "BYTES"), r"images\[1\]"),
        (tensor("images", objects([b"x"] * 193), "BYTES"), "at most 192"),
    ],
)
def test_what_is_wrong_is_said(client: Any, given: Any, says: str) -> None:
    with pytest.raises(InferenceServerException, match=says) as caught:
        client.infer(MODEL, [given])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_unknown_model_version_and_output(client: Any) -> None:
    given = [tensor("images", objects(PICTURES[:1]), "BYTES")]
    for model, version in (("clip", ""), (MODEL, "7")):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, given, model_version=version)
        assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="gives image_embeds"):
        client.infer(MODEL, given, outputs=[triton.InferRequestedOutput("logits")])


def test_too_large_and_too_late(client: Any) -> None:
    given = [tensor("images", objects([b"x" * 1024 * 1024 * 3]), "BYTES")]
    with pytest.raises(InferenceServerException, match="larger than max") as caught:
        client.infer(MODEL, given)
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    given = [tensor("images", objects([b"x" * (1024 * 1024 + 1)]), "BYTES")]
    with pytest.raises(InferenceServerException, match=r"images\[0\]: The image file has"):
        client.infer(MODEL, given)
    given = [tensor("images", objects(PICTURES * 40), "BYTES")]
    with pytest.raises(InferenceServerException) as caught:
        client.infer(MODEL, given, client_timeout=0.01)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_statistics(client: Any) -> None:
    def counted() -> int:
        (stats,) = client.get_inference_statistics(MODEL).model_stats
        return int(stats.inference_count)

    before = counted()
    client.infer(MODEL, [tensor("images", objects(PICTURES), "BYTES")])
    assert counted() == before + len(PICTURES)
