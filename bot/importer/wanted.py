"""Leaves out of an import what people asked the bot to forget."""

from collections.abc import Iterator
from pathlib import Path

from bot.importer.found import Found, SetAside, Source, SourceError
from bot.ingest.forgotten import Forgotten
from bot.ingest.state import StateError, open_state


def wanted(source: Source, state: Path) -> Source:
    """The source without forgotten posts and without those of members who opted out.

    Args:
        source: What is to be imported.
        state: The bot's own file; where there is none, nobody has asked for anything.
    """
    if not state.is_file():
        return source

    def allowed() -> Iterator[Found | SetAside]:
        try:
            db = open_state(state)
        except StateError as error:
            raise SourceError(str(error)) from error
        wishes = Forgotten(db)
        try:
            for item in source():
                if isinstance(item, SetAside) or _allows(wishes, item):
                    yield item
        finally:
            db.close()

    return allowed


def _allows(wishes: Forgotten, found: Found) -> bool:
    # A folder's pictures are in no message.
    return not found.key.message_id.isdecimal() or wishes.allows_post(
        found.key.message_id,
        guild_id=found.guild_id,
        user_id=found.user_id,
        channel_ids=(found.channel_id, found.parent_id),
    )
