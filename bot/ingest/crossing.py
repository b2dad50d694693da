"""What happens to messages while Discord's answer about them is under way.

An answer over REST and the events of the gateway overtake each other: a message can be deleted
after the answer was made and before it is read. What the gateway told in that time is newer.
"""

from collections.abc import Iterable
from typing import Protocol

from bot.archive.port import Selection
from bot.pictures import Sighting


class Told(Protocol):
    """Is told of what happens to messages."""

    def touched(self, message_id: str) -> None:
        """A message was posted or edited."""

    def deleted(self, selection: Selection) -> None:
        """Messages were deleted, or parts of them."""


class Crossing:
    """Takes note from the question to the end of dealing with the answer."""

    def __init__(self) -> None:
        self._messages: set[str] = set()
        self._deletions: list[Selection] = []

    def touched(self, message_id: str) -> None:
        """Notes that a message was posted or edited: its event says how it is now."""
        self._messages.add(message_id)

    def deleted(self, selection: Selection) -> None:
        """Notes a deletion."""
        self._deletions.append(selection)

    def is_newer(self, message_id: str) -> bool:
        """Whether the gateway has told of a message since the question."""
        return message_id in self._messages

    def still(self, sightings: Iterable[Sighting]) -> list[Sighting]:
        """Those pictures of the answer that nothing newer is known of."""
        return [
            one
            for one in sightings
            if one.message_id not in self._messages
            and not any(_selects(selection, one) for selection in self._deletions)
        ]


def _selects(selection: Selection, one: Sighting) -> bool:
    return (
        selection.guild_id in {None, one.guild_id}
        and selection.channel_id in {None, one.channel_id}
        and selection.user_id in {None, one.user_id}
        and (selection.message_ids is None or one.message_id in selection.message_ids)
        and (selection.attachment_ids is None or one.attachment_id in selection.attachment_ids)
    )
