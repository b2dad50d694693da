"""The client over `oip://`, to our own server and to what Triton does with our export."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from exporter.export import lay_out
from exporter.triton import Serving
from inference.artifact import Artifact
from inference.client import ClientSettings, Embedded, EmbeddingClient
from inference.client.results import Limits, Thresholds
from inference.errors import (
    DeadlineError,
    InferenceError,
    InvalidInputError,
    ModelChangedError,
    StartupError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
    UnsupportedError,
)
from inference.server import RunningServer, serve
from inference.settings import BUNDLED_MODEL, ServerSettings
from tests.inference.core.models import IMAGE_WEIGHTS, save_model
from tests.inference.core.pictures import encoded, scene
from tests.inference.server.certificates import Authority
from tests.inference.server.fakes import GatedEngine, Start, client_of, picture
from tests.inference.server.repository import Repository, serving

PATIENCE_S = 30.0


def maps(count: int) -> list[bytes]:
    """Some pictures that differ."""
    return [encoded(scene(60, 40 + number), "PNG") for number in range(count)]


async def source(images: list[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    for number, image in enumerate(images):
        yield number, image


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[EmbeddingClient]:
    async with client_of(f"oip://{server.address}") as client:
        yield client


async def test_it_is_the_same_client(start: Start) -> None:
    async with start(text=True, max_image_bytes=4096) as server:
        await server.ready()
        async with (
            client_of(server.address) as own,
            client_of(f"oip://{server.address}/fake") as other,
        ):
            assert await other.model() == await own.model()
            assert (await other.model()).limits == Limits(
                max_image_bytes=4096,
                max_image_pixels=40_000_000,
                max_message_bytes=4096 + 1024 * 1024,
                max_text_chars=2000,
            )
            embedded = await other.embed(picture(5))
            assert embedded.embedding.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
            assert embedded.embedding.dtype == np.float32
            assert embedded.model_id == "fake@43602d44172a"
            assert embedded.timings.batch_size == 1
            assert embedded.timings.inference_ms > 0
            assert np.argmax((await other.embed_text("abc")).embedding) == 3


async def test_errors_are_the_same(client: EmbeddingClient, engine: GatedEngine) -> None:
    with pytest.raises(InvalidInputError, match="This is not an image"):
        await client.embed(b"bad")
    with pytest.raises(UnsupportedError, match="reads text"):
        await client.embed_text("abc")
    engine.failures.append(InferenceError("The model failed."))
    with pytest.raises(InferenceError, match="The model failed"):
        await client.embed(picture(1))
    engine.gate.clear()
    with pytest.raises(DeadlineError, match=r"in time|timeout"):
        await client.embed(picture(1), timeout_s=0.2)
    engine.gate.set()


async def test_an_image_that_is_too_long_is_never_sent(start: Start, engine: GatedEngine) -> None:
    async with (
        start(max_image_bytes=2048) as server,
        client_of(f"oip://{server.address}") as client,
    ):
        await server.ready()
        with pytest.raises(InvalidInputError, match="2049 bytes long"):
            await client.embed(picture(1, 2049))
        images = [picture(1, 2049), picture(2)]
        items = {item.id: item.outcome async for item in client.embed_many(source(images))}
    assert isinstance(items[0], InvalidInputError)
    assert isinstance(items[1], Embedded)
    assert engine.computed == [2]


async def test_many_are_each_answered_once_and_a_bad_one_ends_nothing(
    client: EmbeddingClient,
) -> None:
    images = [picture(number % 8) for number in range(100)]
    images[7] = b"bad"
    items = [item async for item in client.embed_many(source(images))]
    assert sorted(item.id for item in items) == list(range(100))
    for item in items:
        if item.id == 7:
            assert isinstance(item.outcome, InvalidInputError)
        else:
            assert isinstance(item.outcome, Embedded)
            assert np.argmax(item.outcome.embedding) == item.id % 8


async def test_many_read_only_as_fast_as_they_are_taken(start: Start) -> None:
    taken = 0

    async def counted() -> AsyncIterator[tuple[int, bytes]]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number, picture(1)

    async with start() as server, client_of(f"oip://{server.address}", window=4) as client:
        await server.ready()
        items = client.embed_many(counted())
        async for item in items:
            assert isinstance(item.outcome, Embedded)
            break
        for _ in range(50):
            await asyncio.sleep(0)
        assert taken <= 1 + 4
        await items.aclose()


async def test_many_survive_a_full_server(start: Start) -> None:
    async with start(queue_size=2) as server, client_of(f"oip://{server.address}") as client:
        await server.ready()
        images = [picture(1)] * 40
        items = [item async for item in client.embed_many(source(images))]
    assert all(isinstance(item.outcome, Embedded) for item in items)
    assert len(items) == 40


async def test_a_source_that_fails_ends_the_call(client: EmbeddingClient) -> None:
    async def broken() -> AsyncIterator[tuple[int, bytes]]:
        yield 0, picture(1)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        [item async for item in client.embed_many(broken())]


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with client_of("oip://127.0.0.1:1/fake", attempts=2) as client:
        with pytest.raises(UnavailableError, match=r"oip://127\.0\.0\.1:1/fake"):
            await client.embed(picture(1))


async def test_a_wrong_model_is_said_at_once(server: RunningServer) -> None:
    async with client_of(f"oip://{server.address}/clip") as client:
        with pytest.raises(UnknownModelError, match="there is fake"):
            await client.wait_ready(PATIENCE_S)


async def test_tls_and_the_token(start: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.sign("server")
    token = "t" * 20
    async with start(tls_cert=certificate, tls_key=key, token=token) as server:
        await server.ready()
        address = f"oips://{server.address}/fake"
        async with client_of(address, tls_ca=authority.file, token=token) as client:
            assert (await client.embed(picture(1))).model_id == "fake@43602d44172a"
        async with client_of(address, tls_ca=authority.file) as client:
            with pytest.raises(UnauthenticatedError):
                await client.embed(picture(1))
        async with client_of(address, attempts=1) as client:  # trusts other authorities
            with pytest.raises(UnavailableError):
                await client.embed(picture(1))


@pytest.mark.parametrize(
    ("server", "address", "model", "secure"),
    [
        ("oip://host:8001", "host:8001", "", False),
        ("oip://host:8001/", "host:8001", "", False),
        ("oip://host:8001/clip-b32", "host:8001", "clip-b32", False),
        ("oips://host:8001/clip", "host:8001", "clip", True),
        ("oip://unix:/run/oip.sock", "unix:/run/oip.sock", "", False),
        ("host:8001", "host:8001", "", False),
    ],
)
def test_addresses(server: str, address: str, model: str, *, secure: bool) -> None:
    settings = ClientSettings.load(server=server)
    assert (settings.address, settings.model_name, settings.secure) == (address, model, secure)
    assert settings.open_inference is ("oip" in server[:5])


@pytest.mark.parametrize("server", ["http://host:1", "oip://", "oip:///clip", "oip://h:1/a/b"])
def test_what_is_no_address(server: str) -> None:
    with pytest.raises(StartupError, match=r"MAPSEEK_SERVER: .*is no address"):
        ClientSettings.load(server=server)


def test_a_token_goes_to_another_machine_over_tls_only() -> None:
    token = "t" * 20
    with pytest.raises(StartupError, match="in the clear"):
        ClientSettings.load(server="oip://example.org:8001/clip", token=token)
    ClientSettings.load(server="oips://example.org:8001/clip", token=token)
    ClientSettings.load(server="oip://127.0.0.1:8001/clip", token=token)


# What follows speaks to the stand-in for Triton, which serves an exported repository.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "repository"
    lay_out(BUNDLED_MODEL, out, Serving())
    return out


@pytest.fixture
def repository(folder: Path) -> Iterator[Repository]:
    return Repository(folder)


@asynccontextmanager
async def triton(repository: Repository, **settings: Any) -> AsyncIterator[EmbeddingClient]:
    async with serving(repository) as address, client_of(f"oip://{address}", **settings) as client:
        yield client


async def test_triton_takes_over_by_changing_the_address(repository: Repository) -> None:
    images = maps(5)
    settings = ServerSettings.load(model=BUNDLED_MODEL, listen="127.0.0.1:0")
    async with serve(settings) as server, triton(repository, timeout_s=60) as other:
        await server.ready()
        async with (
            client_of(server.address, timeout_s=60) as own,
            client_of(f"oip://{server.address}", timeout_s=60) as encoded_images,
            client_of(f"oip://{server.address}/mapseek-small_pixels", timeout_s=60) as pixels,
        ):
            model = await own.model()
            there = await other.wait_ready(PATIENCE_S)
            assert there.id == model.id
            shipped = Artifact.load(BUNDLED_MODEL).manifest.thresholds
            assert shipped is not None
            assert there.thresholds == Thresholds(same=shipped.same, similar=shipped.similar)
            assert there.image_size == model.image_size == 192
            assert there.provider == "onnxruntime_onnx"
            for image in images:
                expected = await own.embed(image)
                for client in (encoded_images, pixels, other):
                    answer = await client.embed(image)
                    assert answer.model_id == expected.model_id
                    np.testing.assert_allclose(answer.embedding, expected.embedding, atol=1e-6)
    assert {request.model_name for request in repository.requests} == {"mapseek-small"}
    assert {request.inputs[0].datatype for request in repository.requests} == {"UINT8"}


async def test_triton_gets_priority_and_timeout(repository: Repository) -> None:
    async with triton(repository) as client:
        await client.embed(maps(1)[0], timeout_s=20)
        [item async for item in client.embed_many(source(maps(1)))]
    first, second = repository.requests
    assert first.parameters["priority"].int64_param == 1
    assert 0 < first.parameters["timeout"].int64_param <= 20_000_000
    assert second.parameters["priority"].int64_param == 2


async def test_pictures_are_checked_before_triton_sees_them(repository: Repository) -> None:
    async with triton(repository) as client:
        with pytest.raises(InvalidInputError, match="no image"):
            await client.embed(b"no picture")
        items = [item async for item in client.embed_many(source([b"no picture", *maps(2)]))]
    assert {item.id: type(item.outcome) for item in items} == {
        0: InvalidInputError,
        1: Embedded,
        2: Embedded,
    }
    assert len(repository.requests) == 2


async def test_a_call_is_tried_again(repository: Repository) -> None:
    repository.failures = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    async with triton(repository, timeout_s=60) as client:
        await client.embed(maps(1)[0])
    assert len(repository.requests) == 3


async def test_many_wait_out_an_outage_but_not_for_ever(repository: Repository) -> None:
    repository.failures = [grpc.StatusCode.UNAVAILABLE] * 3
    async with triton(repository) as client:
        items = [item async for item in client.embed_many(source(maps(3)))]
        assert {item.id for item in items if isinstance(item.outcome, Embedded)} == {0, 1, 2}
    repository.failures = [grpc.StatusCode.UNAVAILABLE] * 1000
    async with triton(repository, outage_s=0.5) as client:
        # The last try may be the one that the outage's end cuts off.
        with pytest.raises((UnavailableError, DeadlineError)):
            [item async for item in client.embed_many(source(maps(1)))]


async def test_a_vector_that_is_not_of_unit_length_is_refused(repository: Repository) -> None:
    async with triton(repository) as client:
        for repository.scale in (2.0, float("nan")):
            with pytest.raises(InferenceError, match="instead of 1"):
                await client.embed(maps(1)[0])


async def test_an_answer_of_another_version_is_not_believed(repository: Repository) -> None:
    repository.answer_version = "1"
    async with triton(repository, attempts=2) as client:
        with pytest.raises(UnavailableError, match="answered with version 1 of mapseek-small"):
            await client.embed(maps(1)[0])


def tiny_repository(folder: Path, weights: NDArray[np.float32]) -> Path:
    model = save_model(folder, output_name="image_embeds", weights=weights)
    lay_out(model, out := folder.with_name(f"{folder.name}-repository"), Serving())
    return out


async def test_a_model_that_changes_is_noticed(tmp_path: Path) -> None:
    before = tiny_repository(tmp_path / "before", IMAGE_WEIGHTS)
    after = tiny_repository(tmp_path / "after", -IMAGE_WEIGHTS)
    (image,) = maps(1)
    repository = Repository(before)
    async with triton(repository) as client:
        first = await client.embed(image)
        repository.load(after)
        second = await client.embed(image)
        assert first.model_id != second.model_id == (await client.model()).id
        np.testing.assert_allclose(first.embedding, -second.embedding, atol=1e-6)

        async def images() -> AsyncIterator[tuple[int, bytes]]:
            yield 0, image
            await asyncio.to_thread(repository.load, before)
            yield 1, image

        with pytest.raises(ModelChangedError, match="start over"):
            [item async for item in client.embed_many(images())]


async def test_an_image_is_not_blamed_for_a_model_that_changed(
    folder: Path, tmp_path: Path
) -> None:
    repository = Repository(tiny_repository(tmp_path / "tiny", IMAGE_WEIGHTS))
    (image,) = maps(1)
    async with triton(repository, timeout_s=60) as client:
        first = await client.embed(image)
        repository.load(folder)  # another name and other pixels
        second = await client.embed(image)
        assert first.model_id != second.model_id
        assert second.embedding.shape == (512,)
        repository.failures = [grpc.StatusCode.INVALID_ARGUMENT]
        with pytest.raises(InferenceError, match="refused its pixels: It was told to fail"):
            await client.embed(image)


async def test_a_server_that_does_not_tell_its_models_needs_a_name(
    repository: Repository,
) -> None:
    repository.index = False
    async with serving(repository) as address:
        async with client_of(f"oip://{address}") as client:
            with pytest.raises(UnsupportedError, match=f"write oip://{address}/MODEL"):
                await client.embed(maps(1)[0])
        async with client_of(f"oip://{address}/mapseek-small") as client:
            await client.embed(maps(1)[0])


async def test_several_models_need_a_name(repository: Repository) -> None:
    twin = type(repository.configs["mapseek-small"])()
    twin.CopyFrom(repository.configs["mapseek-small"])
    twin.name = "twin"
    repository.configs["twin"] = twin
    async with triton(repository) as client:
        with pytest.raises(UnsupportedError, match=r"several models: .*/mapseek-small, .*/twin"):
            await client.model()


async def test_a_model_that_is_not_ours_is_refused(repository: Repository) -> None:
    config = repository.configs["mapseek-small"]
    manifest = config.parameters["mapseek_manifest"].string_value
    async with triton(repository) as client:
        config.parameters["mapseek_manifest"].string_value = "{}"
        with pytest.raises(UnsupportedError, match="cannot be read"):
            await client.model()
        del config.parameters["mapseek_manifest"]
        with pytest.raises(UnsupportedError, match="no parameter mapseek_manifest"):
            await client.model()
        config.parameters["mapseek_manifest"].string_value = manifest
        config.version_policy.specific.versions[0] = 1
        with pytest.raises(UnsupportedError, match="has the version 1, and its manifest stands"):
            await client.model()


async def test_a_model_of_other_pixels_is_refused(repository: Repository) -> None:
    repository.configs["mapseek-small"].input[0].dims[0] = 224
    async with triton(repository) as client:
        with pytest.raises(UnsupportedError, match="takes neither images nor pixels"):
            await client.model()
