"""Short codes of vectors, with which a search of a large archive chooses what to compare.

A code has one bit a number: the side of the average vector on which the number lies. Vectors that
point the same way differ in few bits, so the nearest by bits, some hundreds of them, hold the
nearest by cosine; those alone are then read and compared exactly. Codes only propose: the rows of
the archive decide what a search may see.

The codes of a model lie in blocks of rows by the number of the picture, with what searches filter
by beside them. Triggers note every picture that was written or deleted, even by an older mapseek
that knows no codes: what is noted is compared in any case, and the next write brings its code up
to date. Sign codes: M. S. Charikar, "Similarity estimation techniques from rounding algorithms",
2002.
"""
# ruff: noqa: S608 - SQL is put together from constants and numbers of ours; values are parameters

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

import apsw
import numpy as np
from numpy.typing import NDArray

from bot.archive.database import Space, rows, spaces, vectors
from bot.archive.port import Vector
from bot.archive.rows import unpacked

# Pictures in a block: large enough for NumPy to be fast, small enough to stay in the cache.
_BLOCK = 4096
_WORD_BITS = 64
# The average of this many vectors is as good as that of all.
_SAMPLE = 20_000
# Pictures that are coded together when an archive gets its codes.
_BATCH = 2048

# What is known of a picture beside its code. Channels are counted from 1: 0 is an empty place.
_MARK = np.dtype([("posted_us", "<i8"), ("channel", "<i4"), ("spoiler", "<i4")])

_LOW_BYTES = np.uint64(0x00FF00FF00FF00FF)
_ADD_PAIRS = np.uint64(0x0001000100010001)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """What a search may see, in the archive's own numbers.

    Attributes:
        channels: Only these channels; None for all.
        spoilers: Whether spoilered pictures count.
        from_us: Only what was posted from then on, microseconds since 1970; None for all.
        before_us: Only what was posted before then; None for all.
        excluded: Pictures that are left out.
    """

    channels: frozenset[int] | None
    spoilers: bool
    from_us: int | None
    before_us: int | None
    excluded: frozenset[int]


def nearest(
    connection: apsw.Connection, space: Space, asked: Vector, visible: Visible, count: int
) -> list[int]:
    """Pictures that may be the nearest: by their codes, and all that are noted as changed.

    Args:
        connection: In a transaction.
        space: One with codes.
        asked: float32 [D].
        visible: Which pictures count.
        count: How many to propose. All that lie as far as the last of them come with it, so that
            equal vectors come together; and everything where there is no more than this.
    """
    numbers, distances = _distances(connection, space, asked, visible)
    near = np.bincount(distances).cumsum()
    # The smallest distance within which there are enough.
    reach = int(np.searchsorted(near, min(count, distances.size)))
    proposed = set(numbers[distances <= reach].tolist())
    return sorted(proposed.union(row[0] for row in rows(connection, "SELECT picture FROM stale")))


def _distances(
    connection: apsw.Connection, space: Space, asked: Vector, visible: Visible
) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """The numbers of all visible pictures, and in how many bits they differ from what is asked."""
    code = _codes(space, asked[None])[0]
    excluded = np.array(sorted(visible.excluded), np.int64)
    numbers: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    distances: list[NDArray[np.uint16]] = [np.empty(0, np.uint16)]
    allowed = _allowed(connection, visible.channels)
    for block, marks, bits in connection.execute(f"SELECT block, marks, bits FROM {_table(space)}"):
        seen = _seen(np.frombuffer(marks, _MARK), visible, allowed)
        here = excluded[(excluded // _BLOCK) == block] % _BLOCK
        seen[here] = False
        places = np.flatnonzero(seen)
        if places.size:
            codes = np.frombuffer(bits, np.uint64).reshape(_BLOCK, -1)
            # Few of many: only those; otherwise taking them out costs more than it saves.
            few = places.size < _BLOCK // 4
            far = _hamming(codes[places] if few else codes, code)
            numbers.append(places + block * _BLOCK)
            distances.append(far if few else far[places])
    return np.concatenate(numbers), np.concatenate(distances)


def _allowed(connection: apsw.Connection, channels: frozenset[int] | None) -> NDArray[np.bool_]:
    """Whether a channel counts, by its number; the last place is for channels that are gone."""
    ((most,),) = rows(connection, "SELECT ifnull(max(id), 0) FROM channel")
    allowed = np.full(most + 2, channels is None)
    if channels is not None:
        allowed[[*channels]] = True
    allowed[0] = allowed[-1] = False
    return allowed


def _seen(
    marks: NDArray[np.void], visible: Visible, allowed: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    seen: NDArray[np.bool_] = allowed.take(marks["channel"], mode="clip")
    if not visible.spoilers:
        seen &= marks["spoiler"] == 0
    if visible.from_us is not None:
        seen &= marks["posted_us"] >= visible.from_us
    if visible.before_us is not None:
        seen &= marks["posted_us"] < visible.before_us
    return seen


def _hamming(codes: NDArray[np.uint64], code: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """In how many bits each row of `codes` differs from `code`: uint64 [N, W], [W] -> [N]."""
    differing = np.bitwise_count(codes ^ code)
    if differing.shape[1] != _WORD_BITS // 8:
        return np.asarray(differing.sum(axis=1), np.uint16)
    # Eight bytes to a sum, as one word: half the time of the above.
    word = differing.view(np.uint64)[:, 0]
    pairs = (word & _LOW_BYTES) + ((word >> np.uint64(8)) & _LOW_BYTES)
    total: NDArray[np.uint16] = ((pairs * _ADD_PAIRS) >> np.uint64(48)).astype(np.uint16)
    return total


def refresh(connection: apsw.Connection) -> None:
    """Brings the codes of the pictures that are noted as changed up to date.

    Called at the end of every transaction that changes pictures, so that there is never much.
    """
    coded = [space for space in spaces(connection) if space.centre is not None]
    changed = [row[0] for row in rows(connection, "SELECT picture FROM stale ORDER BY picture")]
    for start in range(0, len(changed), _BATCH):
        for space in coded:
            _write(connection, space, changed[start : start + _BATCH])
    connection.execute("DELETE FROM stale")


def make(connection: apsw.Connection, space: Space) -> None:
    """Gives a space its codes. Reads all of its vectors."""
    sample = rows(connection, f"SELECT embedding FROM {vectors(space.id)} LIMIT ?", (_SAMPLE,))
    total = np.zeros(space.dimensions, np.float64)
    for (blob,) in sample:
        total += unpacked(blob)
    centre = (total / max(1, len(sample))).astype(np.float32)
    connection.execute("UPDATE space SET centre = ? WHERE id = ?", (centre.tobytes(), space.id))
    connection.execute(
        f"CREATE TABLE {_table(space)} "
        "(block INTEGER PRIMARY KEY, marks BLOB NOT NULL, bits BLOB NOT NULL) STRICT"
    )
    coded = replace(space, centre=centre)
    ((last,),) = rows(connection, "SELECT ifnull(max(id), 0) FROM picture")
    for start in range(0, last + 1, _BATCH):
        _write(connection, coded, range(start, min(start + _BATCH, last + 1)))


def drop(connection: apsw.Connection, space: Space) -> None:
    """Forgets the codes of a space."""
    connection.execute(f"DROP TABLE IF EXISTS {_table(space)}")


def _write(connection: apsw.Connection, space: Space, pictures: Iterable[int]) -> None:
    """Sets the places of pictures, and empties those that the model has no vector of."""
    wanted = np.array(list(pictures), np.int64)
    found = rows(
        connection,
        "SELECT p.id, p.posted_at_us, p.channel, p.spoiler, v.embedding "
        "FROM json_each(?) AS wanted CROSS JOIN picture AS p ON p.id = wanted.value "
        f"CROSS JOIN {vectors(space.id)} AS v ON v.picture = p.id",
        (json.dumps(wanted.tolist()),),
    )
    places = {row[0]: place for place, row in enumerate(found)}
    marks = np.array([(row[1], row[2], row[3]) for row in found], _MARK)
    codes = _codes(space, np.array([unpacked(row[4]) for row in found], np.float32))
    for block in np.unique(wanted // _BLOCK).tolist():
        here = wanted[wanted // _BLOCK == block].tolist()
        if not _has(connection, space, block):
            if not any(picture in places for picture in here):
                continue
            _add_block(connection, space, block)
        with (
            connection.blob_open("main", _table(space), "marks", block, True) as all_marks,
            connection.blob_open("main", _table(space), "bits", block, True) as all_bits,
        ):
            for picture in here:
                place = places.get(picture)
                all_marks.seek(picture % _BLOCK * _MARK.itemsize)
                if place is None:
                    all_marks.write(bytes(_MARK.itemsize))
                else:
                    all_marks.write(marks[place].tobytes())
                    all_bits.seek(picture % _BLOCK * _width(space))
                    all_bits.write(codes[place].tobytes())
            all_marks.seek(0)
            empty = not any(np.frombuffer(all_marks.read(), _MARK)["channel"])
        if empty:
            connection.execute(f"DELETE FROM {_table(space)} WHERE block = ?", (block,))


def _has(connection: apsw.Connection, space: Space, block: int) -> bool:
    return bool(rows(connection, f"SELECT 1 FROM {_table(space)} WHERE block = ?", (block,)))


def _add_block(connection: apsw.Connection, space: Space, block: int) -> None:
    connection.execute(
        f"INSERT INTO {_table(space)} VALUES (?, zeroblob(?), zeroblob(?))",
        (block, _BLOCK * _MARK.itemsize, _BLOCK * _width(space)),
    )


def _codes(space: Space, embeddings: Vector) -> NDArray[np.uint64]:
    """Codes of vectors: float32 [N, D] -> uint64 [N, W], the last word filled up with zeros."""
    if space.centre is None:
        raise ValueError(f"There are no codes of {space.model_id} yet.")
    bits = np.packbits(embeddings.reshape(-1, space.dimensions) > space.centre, axis=1)
    codes = np.zeros((len(bits), _width(space)), np.uint8)
    codes[:, : bits.shape[1]] = bits
    return codes.view(np.uint64)


def _width(space: Space) -> int:
    """Bytes of a code: whole words."""
    return -(-space.dimensions // _WORD_BITS) * _WORD_BITS // 8


def _table(space: Space) -> str:
    return f"codes_{space.id:d}"
