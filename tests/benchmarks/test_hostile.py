from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.hostile import Victim, _broken_files, _odd_files, attacks
from benchmarks.pictures import screenshots
from inference.artifact import Artifact
from inference.errors import InvalidInputError
from inference.preprocess import Preprocessor

LIMIT = 200_000


@pytest.fixture
def decode(model: Path) -> Preprocessor:
    return Preprocessor(
        Artifact.load(model).manifest.preprocessing,
        max_image_bytes=2**24,
        max_image_pixels=40_000_000,
    )


class Recorder(Victim):
    """Writes down what would have been sent."""

    def __init__(self, pictures: list[bytes]) -> None:
        limits = {"max_image_bytes": LIMIT, "max_message_bytes": 2 * LIMIT}
        super().__init__("127.0.0.1:9", pictures, **limits, seed=0)
        self.sent: list[bytes] = []

    async def embed(self, image: bytes, *, timeout_s: float = 30.0) -> str:
        self.sent.append(image)
        return f"within {timeout_s}"


def test_broken_files_cannot_be_embedded(decode: Preprocessor) -> None:
    for name, data in _broken_files().items():
        with pytest.raises(InvalidInputError) as refusal:
            decode(data)
        assert len(data) < 20_000, name
        if "bomb" in name:  # so it is for its size that it is refused
            assert "pixels" in str(refusal.value), name


def test_odd_files_are_pictures_nevertheless(decode: Preprocessor) -> None:
    files = _odd_files()
    assert all(decode(data).ndim == 3 for data in files.values())
    with Image.open(BytesIO(files["36 megapixels in a small file"])) as picture:
        assert picture.size == (6000, 6000)


async def test_files_are_cut_damaged_and_padded_as_they_are_called(decode: Preprocessor) -> None:
    pictures = screenshots(2)
    victim = Recorder(pictures)
    kinds = {kind.name: kind.run for kind in attacks()}

    async def sent(name: str, times: int) -> list[bytes]:
        victim.sent.clear()
        for _ in range(times):
            await kinds[name](victim)
        return victim.sent

    async with victim.channel:
        for cut in await sent("truncated JPEG", 10):
            assert any(whole.startswith(cut) and cut != whole for whole in pictures)
            with pytest.raises(InvalidInputError):
                decode(cut)
        for damaged in await sent("damaged JPEG", 10):
            (whole,) = (whole for whole in pictures if len(whole) == len(damaged))
            assert 0 < sum(one != two for one, two in zip(damaged, whole, strict=True)) < 30
        (long,) = await sent("file over the limit", 1)
        assert len(long) == LIMIT + 1
        assert decode(long).ndim == 3  # its length is all that is wrong with it
        (message,) = await sent("message over the limit", 1)
        assert len(message) > 2 * LIMIT
        assert await kinds["tiny deadline"](victim) < "within 0.02"
        assert len(await sent("flood", 1)) == 400
