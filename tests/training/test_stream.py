from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2")

from exporter.training import corpus, mapart, stream
from exporter.training.stream import Source, Window

pytestmark = pytest.mark.exporter

SOURCE = Source(seed=3, side=48, queries=2)


def test_a_window_slides_along_the_stream() -> None:
    with Window(SOURCE, size=8, refresh=4, workers=0) as window:
        window.advance()
        window.advance()
        held = {small.tobytes() for small in window._ring.small}
    expected = stream.draw_examples(SOURCE, range(8, 16))

    assert held == {small.tobytes() for small in expected.small}


def test_a_resumed_window_is_the_one_that_was_left() -> None:
    with Window(SOURCE, size=8, refresh=4, workers=0) as window:
        for _ in range(3):
            window.advance()
        went_on = window.sample(np.random.default_rng(5), 4)
    with Window(SOURCE, size=8, refresh=4, step=3, workers=0) as window:
        resumed = window.sample(np.random.default_rng(5), 4)

    assert np.array_equal(went_on.pixels, resumed.pixels)
    assert np.array_equal(went_on.corners, resumed.corners)


@pytest.mark.parametrize(("posted", "expected"), [(1.0, True), (0.0, False)])
def test_a_map_is_learnt_from_its_post_or_from_two_views_that_search(
    posted: float, *, expected: bool
) -> None:
    with Window(SOURCE, size=8, refresh=4, workers=0) as window:
        for seed in range(4):
            sampled = window.sample(np.random.default_rng(seed), 8, posted=posted)
            posts = _corners_of_posts(window)
            for first, other in sampled.corners:
                assert not np.array_equal(first, other)
                assert any(np.allclose(first, post) for post in posts) is expected
                assert not any(np.allclose(other, post) for post in posts)


def _corners_of_posts(window: Window) -> list[stream.Corners]:
    """Where the maps of a window are in their posts, as they are and mirrored."""
    straight = list(window._ring.corners[:, 0])
    return straight + [corners[[1, 0, 3, 2]] * (-1, 1) for corners in straight]


def test_a_batch_holds_the_maps_that_are_most_like_others_in_it() -> None:
    with Window(SOURCE, size=16, refresh=4, workers=0) as window:
        # Even items in twos that differ in brightness alone.
        shapes = np.random.default_rng(0).integers(0, 100, (4, *window._ring.small[0].shape))
        window._ring.small[::2] = np.repeat(shapes, 2, axis=0) + np.resize([0, 60], (8, 1, 1, 1))
        for seed in range(8):
            pairs = window._pairs(np.random.default_rng(seed), 4, 0.5)
            assert len(set(pairs.tolist())) == 4
            assert {pair ^ 1 for pair in pairs[:2].tolist()} <= set(pairs.tolist())
            assert len(set(window._pairs(np.random.default_rng(seed), 8, 0.5).tolist())) == 8


def test_siblings_are_drawn_together_and_differ() -> None:
    for border_share in (0.0, 1.0):
        source = Source(seed=3, sibling_share=1.0, border_share=border_share)
        for even in (0, 2, 4, 6):
            one, other = stream.wall(source, even), stream.wall(source, even + 1)
            assert one.shape == other.shape
            assert not np.array_equal(one, other)


@pytest.mark.parametrize("part_share", [0.0, 1.0])
def test_siblings_show_other_parts_of_a_picture_or_the_same_part_otherwise(
    monkeypatch: pytest.MonkeyPatch, part_share: float
) -> None:
    # Red grows to the right and green downwards, so both tell which part is shown.
    slope = np.broadcast_to(np.linspace(0, 240, 128).astype(np.uint8), (128, 128))
    picture = np.stack([slope, slope.T, np.full_like(slope, 7)], -1)
    monkeypatch.setattr(stream, "_picture", lambda *_: picture)
    monkeypatch.setattr(mapart, "quantise", lambda pixels, *_: pixels)
    source = Source(
        seed=3, sibling_share=1.0, border_share=0.0, part_share=part_share, coarse_share=0.0
    )
    elsewhere = 0
    for even in range(0, 40, 2):
        one, other = stream.wall(source, even), stream.wall(source, even + 1)
        least, most = (0.25, 0.8) if part_share else (1.0, 1.0)
        assert least <= np.ptp(one[..., 0]) / 240 <= most
        # Recoloured or mirrored, or neither: then it is cut anew.
        if (other[..., 2] == 7).all() and other[0, 0, 0] < other[0, -1, 0]:
            elsewhere += 1
            assert 0.25 <= np.ptp(other[..., 0]) / 240 <= 0.8
            assert not np.array_equal(one, other)
        else:
            assert sorted(np.ptp(other, (0, 1))) == sorted(np.ptp(one, (0, 1)))
    assert 2 < elsewhere < 18


def test_a_coarse_map_and_its_sibling_have_few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    slope = np.broadcast_to(np.linspace(0, 240, 128).astype(np.uint8), (128, 128))
    monkeypatch.setattr(stream, "_picture", lambda *_: np.stack([slope, slope, slope], -1))
    monkeypatch.setattr(mapart, "quantise", lambda pixels, *_: pixels)
    source = Source(seed=3, sibling_share=1.0, border_share=0.0, coarse_share=1.0)
    for even in range(0, 20, 2):
        counts = []
        for index in (even, even + 1):
            columns = stream.wall(source, index)[0].astype(int)
            counts.append(1 + np.count_nonzero(np.diff(columns, axis=0).any(1)))
        assert 12 <= counts[0] == counts[1] <= 64


def test_a_border_is_painted_inside_the_map() -> None:
    bare, bordered = (stream.wall(Source(seed=3, border_share=share), 0) for share in (0.0, 1.0))

    assert bare.shape == bordered.shape
    for edge in (bordered[0], bordered[:, -1]):
        # One colour, but for what dithering and the shades of stairs make of it.
        assert edge.std(axis=0).max() < bare.std(axis=(0, 1)).max()


def test_streams_of_different_seeds_share_no_pictures() -> None:
    ours, theirs = (
        {stream.wall(Source(seed=seed, sibling_share=0), index).tobytes() for index in range(6)}
        for seed in (1, 2)
    )
    assert not ours & theirs


def test_a_mirrored_item_keeps_its_corners_at_its_map() -> None:
    before = stream.draw_examples(SOURCE, range(4))
    mirrored = 0
    for seed in range(6):
        varied = deepcopy(before)
        stream._vary(np.random.default_rng(seed), varied)
        for item in range(4):
            if np.array_equal(varied.corners[item], before.corners[item]):
                continue
            mirrored += 1
            # The upper left of the mirrored map is where the upper right was, seen from behind.
            assert np.allclose(varied.corners[item, :, 0, 0], -before.corners[item, :, 1, 0])
            assert np.allclose(varied.corners[item, :, 3, 1], before.corners[item, :, 2, 1])
            assert np.array_equal(
                varied.pixels[item].sum(-1), before.pixels[item, :, :, ::-1].sum(-1)
            )
    assert mirrored > 4


def test_an_odd_window_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        Window(SOURCE, size=7, refresh=2, workers=0)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(10):
        # Two tones each, so that none counts as blank; the tone tells which picture it is.
        picture = np.zeros((40, 40, 3), np.uint8)
        picture[:, 20:] = 60 + 19 * index
        Image.fromarray(picture).save(folder / f"{index}.png")
    Image.new("RGB", (40, 40)).save(folder / "blank.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    target = tmp_path / "corpus.npy"
    assert corpus.build(folder, target) == 10
    return target


def test_a_corpus_leaves_out_what_is_of_no_use(cache: Path) -> None:
    assert corpus.load(cache).shape == (10, corpus.SIDE, corpus.SIDE, 3)
    assert list(cache.parent.glob("*.partial*")) == []


def test_training_never_sees_the_held_out_part_of_a_corpus(cache: Path) -> None:
    pictures = corpus.load(cache)
    source = Source(seed=1, corpora=(cache,), corpus_share=1.0, corpus_part=(0.0, 0.9))
    brightest = [
        stream._picture(source, index, np.random.default_rng(index), (1, 1)).max()
        for index in range(40)
    ]

    # The tenth picture is brighter than all others; interpolation may overshoot a little.
    assert max(brightest) < int(pictures[9].max()) - 5
