"""The life of the collection and its search indexes: what `mapseek archive` does to Atlas."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bot.archive.atlas import documents, indexes, ranking
from bot.archive.atlas.driver import Document, Driver
from bot.archive.atlas.indexes import SearchIndex
from bot.archive.port import ArchiveError, ForbiddenError, Query, Vector
from bot.settings import BotSettings

Tell = Callable[[str], None]

_FIRST_LOOK_S = 0.2
_LOOK_EVERY_S = 2.0
_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the collection holds of one model.

    Attributes:
        id: The model.
        entries: How many documents.
        dimensions: The length of its vectors, by one of them.
    """

    id: str
    entries: int
    dimensions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the collection is.

    Attributes:
        models: What it holds.
        unclaimed: Documents of the first bot that no model is known for.
        arrays: Documents whose vectors are arrays, three times as large as they need be.
        indexes: Its search indexes.
        problems: What is wrong, each with what to do; nothing is found or much is lost meanwhile.
        hints: What could be better.
    """

    models: list[Model]
    unclaimed: int
    arrays: int
    indexes: list[SearchIndex]
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """The lengths of the vectors that are stored."""
        return sorted({model.dimensions for model in self.models})


async def listed(driver: Driver) -> list[SearchIndex]:
    """The collection's search indexes."""
    return [indexes.read(one) for one in await driver.search_indexes()]


async def init(
    driver: Driver, settings: BotSettings, lengths: Sequence[int], *, tell: Tell, wait_s: float
) -> None:
    """Makes what is missing, brings up to date what is old, and waits until it answers.

    Args:
        driver: The collection.
        settings: How to name and make the indexes.
        lengths: The lengths of vectors that must be searchable.
        tell: Is told of every step.
        wait_s: How long to wait for an index to be built, in seconds.

    Raises:
        ForbiddenError: The user may not make search indexes: see `indexes.for_the_page`.
        ArchiveError: An index failed, or takes longer than that.
    """
    await driver.create_collection()
    await driver.create_indexes(documents.INDEXES)
    tell(f"The collection {settings.atlas_database}.{settings.atlas_collection} is there.")
    for length in lengths:
        try:
            name = await _asked_for(driver, settings, length, tell)
            await _built(driver, name, length, tell=tell, wait_s=wait_s)
        except ForbiddenError:
            # It may have been made on the cluster's page; whether it is there, a search tells.
            name = indexes.name_for(settings.atlas_index, length)
            if not await _answers(driver, indexes.assumed(name, length, "none"), length):
                raise
            tell(f"The index {name} answers queries.")


async def _asked_for(driver: Driver, settings: BotSettings, length: int, tell: Tell) -> str:
    """Sees to it that an index for vectors of a length exists or is being built."""
    name = indexes.name_for(settings.atlas_index, length)
    wanted = indexes.definition(length, settings.atlas_quantization)
    known = await listed(driver)
    same = next((one for one in known if one.name == name), None)
    if same is None:
        other = indexes.choose(known, length, settings.atlas_index)
        if other is not None and not other.stale:
            tell(f"The index {other.name} serves vectors of {length} numbers already.")
            return other.name
        await driver.create_search_index(name, wanted)
        tell(f"The index {name} for vectors of {length} numbers was asked for.")
    elif same.legacy:
        raise ArchiveError(
            f"{name} is the name of a search index of the old kind, which cannot be changed into a "
            "vector search index: set MAPSEEK_ATLAS_INDEX to another name."
        )
    elif same.stale or (same.dimensions, same.quantization) != (
        length,
        settings.atlas_quantization,
    ):
        await driver.update_search_index(name, wanted)
        tell(f"The index {name} is brought up to date; it answers as it was meanwhile.")
    return name


async def _built(driver: Driver, name: str, length: int, *, tell: Tell, wait_s: float) -> None:
    """Waits until an index answers queries, with all that was asked for."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + wait_s
    pause_s = _FIRST_LOOK_S
    said = ""
    while True:
        index = next((one for one in await listed(driver) if one.name == name), None)
        if index is not None and index.serves(length) and index.status in ("READY", "STALE"):
            tell(f"The index {name} answers queries.")
            if index.status == "STALE":
                tell(stale(name))
            return
        status = index.status if index else "not listed yet"
        if status == "FAILED":
            raise ArchiveError(
                f"Atlas failed to build the index {name}: see the reason on the cluster's page, "
                "drop it there, and run `mapseek archive init` again."
            )
        if loop.time() >= until_s:
            raise ArchiveError(
                f"The index {name} is not ready after {wait_s:.0f} s ({status}). Atlas goes on "
                "building it: `mapseek archive status` shows how far it is."
            )
        if status != said:
            said = status
            tell(f"The index {name}: {status}.")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LOOK_EVERY_S)


async def _answers(driver: Driver, index: SearchIndex, length: int) -> bool:
    """Whether an index finds a vector that is stored."""
    model = next((one for one in await stored(driver) if one.dimensions == length), None)
    if model is None or (embedding := await _some_vector(driver, model.id)) is None:
        return False
    vector = documents.stored_vector(embedding, length, what=f"a document of {model.id}")
    query = Query(embedding=embedding, model_id=model.id)
    asked = ranking.pipeline(query, vector, index, limit=1, candidates=None)
    return bool(await driver.aggregate(asked))


async def stored(driver: Driver) -> list[Model]:
    """What the collection holds, by model."""
    return [
        Model(id=one["_id"], entries=one["entries"], dimensions=await _length(driver, one["_id"]))
        for one in await driver.aggregate(
            [
                {"$match": documents.OURS},
                {"$group": {"_id": f"${documents.MODEL}", "entries": {"$sum": 1}}},
                {"$sort": {"_id": 1}},
            ],
            patient=True,
        )
    ]


async def inspect(driver: Driver, settings: BotSettings) -> Health:
    """Looks at everything that Atlas would say nothing about."""
    health = Health(
        models=await stored(driver),
        unclaimed=await _unclaimed(driver),
        arrays=await _count(driver, documents.ARRAYS),
        indexes=[],
    )
    try:
        health.indexes.extend(await listed(driver))
    except ForbiddenError:
        for length in health.lengths:
            name = indexes.name_for(settings.atlas_index, length)
            health.indexes.append(indexes.assumed(name, length, settings.atlas_quantization))
            health.hints.append(
                f"Atlas does not tell which search indexes there are, so {name} is taken to be "
                "there: `mapseek archive init` finds out whether it is."
            )
    _judge(health, settings.atlas_index)
    return health


def _judge(health: Health, prefix: str) -> None:
    if health.unclaimed:
        health.problems.append(
            f"{health.unclaimed} documents of the first bot name no model, so they are not found: "
            "run `mapseek archive migrate --model ID` with the id of the model that made them."
        )
    for length in health.lengths:
        serving = indexes.choose(health.indexes, length, prefix)
        if serving is None:
            health.problems.append(indexes.complaint(health.indexes, length, prefix))
        else:
            _judge_serving(health, serving, length, prefix)
    if health.arrays and not health.unclaimed:
        health.hints.append(
            f"{health.arrays} documents hold their vectors as arrays, three times as large as they "
            "need be: run `mapseek archive migrate`."
        )
    if not health.indexes and not health.models:
        health.hints.append("There is no search index yet: run `mapseek archive init`.")
    for one in health.indexes:
        if one.dimensions is None:
            health.hints.append(
                f"{one.name} indexes nothing of mapseek's; small clusters allow few search indexes."
            )
        elif health.models and one.dimensions not in health.lengths:
            health.hints.append(
                f"{one.name} indexes vectors of {one.dimensions} numbers, and there are none: drop "
                "it if no such model is coming."
            )


def stale(name: str) -> str:
    """What is wrong with an index that does not follow any more."""
    return (
        f"{name} no longer follows the collection (STALE), so what was stored since is not found: "
        "see the reason on the cluster's page; it is often a full disk."
    )


def _judge_serving(health: Health, serving: SearchIndex, length: int, prefix: str) -> None:
    wanted = indexes.name_for(prefix, length)
    if serving.status == "STALE":
        health.problems.append(stale(serving.name))
    elif serving.status not in ("READY", "UNKNOWN", ""):
        health.hints.append(f"{serving.name} answers, and a newer one is {serving.status}.")
    if serving.legacy:
        health.hints.append(
            f"{serving.name} is a search index of the old kind (knnVector): it still answers, but "
            "filters after the search, so that pictures in rarely used channels can be missed. Run "
            "`mapseek archive migrate` to move to a vector search index."
        )
    elif serving.stale:
        missing = ", ".join(sorted({*indexes.FILTERS} - serving.filters))
        health.hints.append(
            f"{serving.name} cannot filter by {missing}, so searches read more than they need: run "
            "`mapseek archive init`."
        )
    elif serving.name not in (wanted, prefix):
        health.hints.append(
            f"There is no index {wanted}; {serving.name} fits and is used in its place."
        )


async def _length(driver: Driver, model_id: str) -> int:
    vector = await _some_vector(driver, model_id)
    return 0 if vector is None else vector.size


async def _some_vector(driver: Driver, model_id: str) -> Vector | None:
    found = await driver.find(documents.of_model(model_id), (documents.VECTOR,), limit=1)
    return documents.vector_of(found[0]) if found else None


async def _unclaimed(driver: Driver) -> int:
    """Documents without a model, unless none of them is a picture: `migrate` leaves those alone."""
    async for page in pages(driver, documents.UNCLAIMED):
        if any(documents.readable(one) for one in page):
            return await _count(driver, documents.UNCLAIMED)
    return 0


async def pages(driver: Driver, where: Mapping[str, Any]) -> AsyncIterator[list[Document]]:
    """The documents that fit, some at a time; they may be changed meanwhile."""
    behind: dict[str, Any] = {}
    while page := await driver.find({**where, **behind}, sort=("_id",), limit=_PAGE, patient=True):
        behind = {"_id": {"$gt": page[-1]["_id"]}}
        yield page


async def _count(driver: Driver, where: Mapping[str, Any]) -> int:
    found = await driver.aggregate([{"$match": where}, {"$count": "documents"}], patient=True)
    return int(found[0]["documents"]) if found else 0
