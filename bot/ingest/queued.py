"""What lies in the queue, as it comes out of it."""

from dataclasses import dataclass
from enum import IntEnum

from bot.pictures import Sighting


class Lane(IntEnum):
    """What goes first."""

    LIVE = 0
    BACKFILL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A picture that waits to be indexed.

    Attributes:
        sighting: What was seen.
        attempts: How often it has failed so far.
        lane: What it goes with.
        anew: Whether to index it although the archive may have it: what is said of it has changed.
    """

    sighting: Sighting
    attempts: int
    lane: Lane = Lane.LIVE
    anew: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A picture that could not be indexed.

    Attributes:
        sighting: What was seen.
        reason: Why, in one sentence.
    """

    sighting: Sighting
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownThread:
    """A thread that pictures were seen in, whether it is archived by now or not.

    Attributes:
        thread_id: The thread.
        parent_id: The channel it belongs to.
        private: Whether only its members may read it.
    """

    thread_id: str
    parent_id: str
    private: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How much lies in the queue.

    Attributes:
        waiting: Pictures to be indexed.
        backfill: Those of them that are old posts.
        set_aside: Pictures that failed for good.
        deletions: Deletions to be carried out.
    """

    waiting: int
    set_aside: int
    deletions: int
    backfill: int = 0
