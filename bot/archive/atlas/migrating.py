"""Moving a collection of the first bot to today's documents and index, while it goes on serving.

Every step may be repeated, and the old index is dropped last: what is interrupted is finished by
the same command.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from pymongo import DeleteOne, UpdateOne

from bot.archive.atlas import documents, managing
from bot.archive.atlas.driver import Document, Driver, Write
from bot.archive.atlas.managing import Tell
from bot.archive.port import ArchiveError
from bot.settings import BotSettings

_LINK = re.compile(r"discord(?:app)?\.com/channels/(\d+|@me)/(\d+)/(\d+)")
_ATTACHMENT = re.compile(r"/attachments/\d+/(\d+)/([^/?#]+)")


@dataclass(slots=True, kw_only=True)
class Migrated:
    """What a migration did.

    Attributes:
        claimed: Documents that were given what they lacked.
        doubles: Documents that said the same as another, and were deleted.
        unreadable: Documents that are no pictures and were left as they are.
        packed: Vectors that were arrays and are BinData now.
        dropped: Search indexes of the old kind that are gone.
    """

    claimed: int = 0
    doubles: int = 0
    unreadable: int = 0
    packed: int = 0
    dropped: int = 0


async def migrate(
    driver: Driver, settings: BotSettings, model_id: str | None, *, tell: Tell, wait_s: float
) -> Migrated:
    """Brings documents and index up to date.

    Args:
        driver: The collection.
        settings: How to name and make the index.
        model_id: Which model made the vectors of documents that do not say it.
        tell: Is told of every step.
        wait_s: How long to wait for the new index, in seconds.

    Raises:
        ForbiddenError: The user may not make search indexes.
        ArchiveError: There are documents without a model and none is given; the new index failed,
            or finds nothing.
    """
    done = Migrated()
    health = await managing.inspect(driver, settings)
    if health.unclaimed and model_id is None:
        raise ArchiveError(
            f"{health.unclaimed} documents do not say which model made their vectors: name it with "
            "--model (`mapseek stats` shows the ids in use; any name will do for a model that is "
            "not served any more)."
        )
    await driver.create_collection()
    await driver.create_indexes(documents.INDEXES)
    if model_id is not None:
        await _claim(driver, model_id, done, tell)
    health = await managing.inspect(driver, settings)
    await managing.init(driver, settings, health.lengths, tell=tell, wait_s=wait_s)
    # Only now: the old index is documented to read arrays of doubles.
    await _pack(driver, done, tell)
    for index in health.indexes:
        if index.legacy and index.dimensions in health.lengths:
            await driver.drop_search_index(index.name)
            done.dropped += 1
            tell(f"The old index {index.name} is dropped.")
    return done


async def _claim(driver: Driver, model_id: str, done: Migrated, tell: Tell) -> None:
    async for page in managing.pages(driver, documents.UNCLAIMED):
        lacking = {one["_id"]: (one, _lacking(one, model_id)) for one in page}
        messages = {"$in": [one[documents.MESSAGE] for one in page if documents.MESSAGE in one]}
        known = {
            documents.picture_key(one)
            for one in await driver.find(
                {documents.MODEL: model_id, documents.MESSAGE: messages},
                (documents.MESSAGE, documents.ATTACHMENT),
            )
        }
        writes: list[Write] = []
        for id_, (one, fields) in lacking.items():
            if fields is None:
                done.unreadable += 1
                continue
            key = documents.picture_key(one | fields)
            if key in known:
                writes.append(DeleteOne({"_id": id_}))
                done.doubles += 1
                continue
            known.add(key)
            # Whoever claimed it meanwhile is right.
            writes.append(UpdateOne({"_id": id_} | documents.UNCLAIMED, {"$set": fields}))
            done.claimed += 1
        for failure in await driver.bulk(writes):
            raise ArchiveError(f"Atlas refuses to change a document: {failure.reason}.")
        tell(f"{done.claimed} documents say now that {model_id} made their vectors.")


async def _pack(driver: Driver, done: Migrated, tell: Tell) -> None:
    async for page in managing.pages(driver, documents.ARRAYS):
        writes: list[Write] = []
        for one in page:
            try:
                vector = documents.vector_of(one)
            except ArchiveError:
                done.unreadable += 1
                continue
            stored = documents.stored_vector(vector, None, what=f"document {one['_id']}")
            # Whoever stored another vector meanwhile is right.
            same = {"_id": one["_id"], documents.VECTOR: one[documents.VECTOR]}
            writes.append(UpdateOne(same, {"$set": {documents.VECTOR: stored}}))
        for failure in await driver.bulk(writes):
            raise ArchiveError(f"Atlas refuses to pack a vector: {failure.reason}.")
        done.packed += len(writes)
        tell(f"{done.packed} vectors take a third of the room now.")


def _lacking(document: Document, model_id: str) -> dict[str, Any] | None:
    """What a document of the first bot lacks; None where it is no picture."""
    picture = documents.readable(document)
    if picture is None:
        return None
    link = _LINK.search(picture.message_link)
    file = _ATTACHMENT.search(picture.image_url)
    url_hash = hashlib.sha256(picture.image_url.encode()).hexdigest()[:16]
    return {
        documents.MODEL: model_id,
        documents.GUILD: picture.guild_id or (link[1].replace("@me", "") if link else ""),
        documents.ATTACHMENT: picture.key.attachment_id or (file[1] if file else f"url-{url_hash}"),
        documents.HASH: picture.content_hash,
        documents.SPOILER: picture.spoiler or bool(file and file[2].startswith("SPOILER_")),
        "author": picture.author,
        "channel": picture.channel,
    }
