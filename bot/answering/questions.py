"""What members have asked, kept for a while so that an answer can be gone on from.

The buttons of an answer carry no more than a random token: what may be shown is worked out anew at
every press, from what is kept here and from Discord. After a restart, or when the time is over, the
token is unknown and the member is asked to ask again.
"""

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from bot.archive.port import PictureKey
from bot.pictures import Sighting
from bot.search import Look
from inference.client import Thresholds

_PREFIX = "mapseek:find"
_CUSTOM_ID = re.compile(
    rf"{_PREFIX}:(pick|page|share|remove):([A-Za-z0-9_-]{{1,32}})(?::([0-9]{{1,3}}))?"
)
# A question holds up to four vectors of 2 kB and a small picture: some 15 kB, of noise 100 kB.
_MOST_QUESTIONS = 1_000
_MOST_BYTES = 16 * 1024 * 1024
_MOST_OF_A_GUILD = 200
_LIFE_S = 1_800.0


@dataclass(slots=True, kw_only=True)
class Question:
    """What a member asked about.

    Attributes:
        owner_id: The member; nobody else goes on from the answer.
        guild_id: Where it was asked; nowhere else is it gone on from.
        channel_id: Likewise.
        looks: The question's vectors. All pages, and what is shared, go by the same ones.
        thresholds: What scores mean; None where that was not measured, and for words.
        spoiler: Whether the picture itself must stay hidden.
        shown: A small file of it for the sheet, None where it cannot be drawn; or the words.
        asked: The picture as it stands in a message; None for words and uploads.
        choices: All pictures of that message.
        pages: The pictures on every page that was shown.
        shared: The pages that were shared.
    """

    owner_id: int
    guild_id: int
    channel_id: int
    looks: tuple[Look, ...]
    thresholds: Thresholds | None
    shown: bytes | str | None
    spoiler: bool = False
    asked: Sighting | None = None
    choices: tuple[Sighting, ...] = ()
    pages: list[tuple[PictureKey, ...]] = field(default_factory=list)
    shared: set[int] = field(default_factory=set)


class Action(StrEnum):
    """What a component does."""

    PICK = "pick"
    PAGE = "page"
    SHARE = "share"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Press:
    """What a component says when it is used. Anybody could have made it up.

    Attributes:
        action: What is to be done.
        token: Which question it is about; for `REMOVE`, who may.
        page: Which page of the answer.
    """

    action: Action
    token: str
    page: int = 0

    def __str__(self) -> str:
        """The custom id: up to 100 letters, of which this is less than half."""
        return f"{_PREFIX}:{self.action}:{self.token}:{self.page}"


def is_ours(custom_id: str) -> bool:
    """Whether a component is one below an answer, of whatever version of the bot."""
    return custom_id.startswith(f"{_PREFIX}:")


def press_of(custom_id: str) -> Press | None:
    """What a custom id of ours means; None if it means nothing, as one that was made up."""
    match = _CUSTOM_ID.fullmatch(custom_id)
    if match is None:
        return None
    return Press(action=Action(match[1]), token=match[2], page=int(match[3] or 0))


class Questions:
    """Keeps so many questions for so long, the latest used in favour of the others.

    Args:
        most: How many.
        most_bytes: How much of what is shown of them.
        most_of_a_guild: How many of one guild, so that it does not push out the others'.
        life_s: How long, in seconds.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        *,
        most: int = _MOST_QUESTIONS,
        most_bytes: int = _MOST_BYTES,
        most_of_a_guild: int = _MOST_OF_A_GUILD,
        life_s: float = _LIFE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._most_of_a_guild = most_of_a_guild
        self._life_s = life_s
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, Question]] = OrderedDict()
        # Their tokens by guild, the longest unused first as well.
        self._of_guild: dict[int, OrderedDict[str, None]] = {}

    def keep(self, question: Question) -> str:
        """Keeps a question and returns the token that it is found by."""
        token = secrets.token_urlsafe(12)
        self._put(token, question)
        while (
            next(iter(self._kept.values()))[0] < self._clock()
            or len(self._kept) > self._most
            or self._bytes > self._most_bytes
        ):
            self._take(next(iter(self._kept)))
        of_guild = self._of_guild[question.guild_id]
        while len(of_guild) > self._most_of_a_guild:
            self._take(next(iter(of_guild)))
        return token

    def recall(self, token: str) -> Question | None:
        """The question of a token; None if it is unknown, or forgotten by now."""
        if token not in self._kept:
            return None
        ends_at_s, question = self._take(token)
        if ends_at_s < self._clock():
            return None
        self._put(token, question)
        return question

    def _put(self, token: str, question: Question) -> None:
        self._kept[token] = (self._clock() + self._life_s, question)
        self._bytes += len(question.shown or b"")
        self._of_guild.setdefault(question.guild_id, OrderedDict())[token] = None

    def _take(self, token: str) -> tuple[float, Question]:
        ends_at_s, question = self._kept.pop(token)
        self._bytes -= len(question.shown or b"")
        of_guild = self._of_guild[question.guild_id]
        del of_guild[token]
        if not of_guild:
            del self._of_guild[question.guild_id]
        return ends_at_s, question
