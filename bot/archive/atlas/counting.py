"""Counting what the collection holds."""

from typing import Any

from bot.archive.atlas.documents import (
    ATTACHMENT,
    CHANNEL,
    GUILD,
    MESSAGE,
    MODEL,
    OURS,
    POSTED,
    POSTED_US,
    with_microseconds,
)
from bot.archive.atlas.driver import Driver
from bot.archive.port import ForbiddenError, Stats
from bot.archive.rows import in_utc


async def count(driver: Driver) -> Stats:
    """See `ImageArchive.stats`."""
    models = await driver.aggregate(
        [
            {"$match": OURS},
            {"$group": {"_id": f"${MODEL}", "entries": {"$sum": 1}}},
            {"$sort": {"_id": 1}},
        ],
        patient=True,
    )
    by_model = {row["_id"]: int(row["entries"]) for row in models}
    channels = await driver.aggregate(_channels(several_models=len(by_model) > 1), patient=True)
    channels.sort(key=lambda row: (-row["pictures"], row["_id"]["guild"], row["_id"]["channel"]))
    newest = max((_posted(row["newest"]) for row in channels), default=None)
    return Stats(
        pictures=sum(int(row["pictures"]) for row in channels),
        by_model=by_model,
        by_channel={_place(row): int(row["pictures"]) for row in channels},
        channel_names={
            _place(row): row["newest"]["name"] for row in channels if row["newest"].get("name")
        },
        newest=newest,
        size_bytes=await _size_bytes(driver),
    )


async def selected(driver: Driver, where: dict[str, Any]) -> tuple[int, int]:
    """How many documents fit, and how many pictures those are about."""
    found = await driver.aggregate(
        [
            {"$match": where},
            {
                "$group": {
                    "_id": {"message": f"${MESSAGE}", "attachment": f"${ATTACHMENT}"},
                    "documents": {"$sum": 1},
                }
            },
            {"$group": {"_id": None, "pictures": {"$sum": 1}, "all": {"$sum": "$documents"}}},
        ],
        patient=True,
    )
    return (int(found[0]["all"]), int(found[0]["pictures"])) if found else (0, 0)


def _channels(*, several_models: bool) -> list[dict[str, Any]]:
    """Counts pictures by channel, each once however many models have embedded it."""
    # Objects are compared field by field: the newest has the newest date.
    newest = {"posted": f"${POSTED}", "us": f"${POSTED_US}", "name": "$channel"}
    once = {
        "$group": {
            "_id": {"message": f"${MESSAGE}", "attachment": f"${ATTACHMENT}"},
            GUILD: {"$first": f"${GUILD}"},
            "metadata": {"$first": "$metadata"},
            "channel": {"$first": "$channel"},
        }
    }
    return [
        {"$match": OURS},
        *([once] if several_models else []),
        {
            "$group": {
                "_id": {"guild": f"${GUILD}", "channel": f"${CHANNEL}"},
                "pictures": {"$sum": 1},
                "newest": {"$max": newest},
            }
        },
    ]


def _place(row: dict[str, Any]) -> tuple[str, str]:
    return row["_id"].get("guild", ""), row["_id"].get("channel", "")


def _posted(newest: dict[str, Any]) -> Any:
    return with_microseconds(in_utc(newest["posted"]), newest.get("us", 0))


async def _size_bytes(driver: Driver) -> int | None:
    """Documents and indexes as small clusters count them: not compressed."""
    try:
        found = await driver.aggregate([{"$collStats": {"storageStats": {}}}])
    except ForbiddenError:
        return None
    if not found:
        return None
    storage = found[0].get("storageStats", {})
    return int(storage.get("size", 0)) + int(storage.get("totalIndexSize", 0))
