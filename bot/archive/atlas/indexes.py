"""Search indexes: what they are for, which of them can answer a query, and what is wrong with them.

Atlas answers a query over an index that is missing, misspelt or for vectors of another length with
silence, so mapseek looks at the definitions before it asks.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bot.archive.atlas.documents import CHANNEL, GUILD, MODEL, POSTED, SPOILER, VECTOR

FILTERS = (MODEL, GUILD, CHANNEL, SPOILER, POSTED)
# A search index that maps whatever it meets knows dates and booleans; of strings it keeps words,
# which no filter can ask for.
_DYNAMIC_FILTERS = frozenset({SPOILER, POSTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchIndex:
    """A search index of the collection.

    Attributes:
        name: Its name.
        legacy: Whether it is a search index with a `knnVector` field, as the first bot made it.
        status: Atlas's word for how far it is: READY, BUILDING, FAILED and so on.
        queryable: Whether it answers queries.
        dimensions: Length of the vectors that it indexes; None where it indexes none of ours.
        similarity: How it compares them.
        quantization: How it keeps them.
        filters: The fields that a query over it may filter by.
    """

    name: str
    legacy: bool
    status: str
    queryable: bool
    dimensions: int | None
    similarity: str = ""
    quantization: str = "none"
    filters: frozenset[str] = field(default=frozenset())

    @property
    def stale(self) -> bool:
        """Whether its definition is older than this mapseek's."""
        return self.legacy or self.similarity != "cosine" or not self.filters >= {*FILTERS}

    def serves(self, dimensions: int) -> bool:
        """Whether queries of this length can be asked of it, now."""
        return self.queryable and self.dimensions == dimensions and self.similarity == "cosine"


def name_for(prefix: str, dimensions: int) -> str:
    """What mapseek calls the index for vectors of a length."""
    return f"{prefix}_{dimensions}"


def definition(dimensions: int, quantization: str) -> dict[str, Any]:
    """What mapseek asks Atlas to build."""
    vector: dict[str, Any] = {
        "type": "vector",
        "path": VECTOR,
        "numDimensions": dimensions,
        "similarity": "cosine",
    }
    if quantization != "none":
        vector["quantization"] = quantization
    return {"fields": [vector, *({"type": "filter", "path": path} for path in FILTERS)]}


def for_the_page(prefix: str, dimensions: int, quantization: str) -> str:
    """What to type into Atlas's page where commands are not allowed, as one text."""
    return (
        f"Index name: {name_for(prefix, dimensions)} (type: Vector Search, JSON editor)\n"
        + json.dumps(definition(dimensions, quantization), indent=2)
    )


def assumed(name: str, dimensions: int, quantization: str) -> SearchIndex:
    """An index that is taken to be as mapseek makes it, where Atlas does not tell."""
    return SearchIndex(
        name=name,
        legacy=False,
        status="UNKNOWN",
        queryable=True,
        dimensions=dimensions,
        similarity="cosine",
        quantization=quantization,
        filters=frozenset(FILTERS),
    )


def read(document: dict[str, Any], *, serving: bool = False) -> SearchIndex:
    """A search index from what `$listSearchIndexes` says about it.

    While a new definition is built the old one answers: `serving` reads that one.
    """
    latest = _serving(document) if serving else document.get("latestDefinition") or {}
    name, status = str(document.get("name", "")), str(document.get("status", ""))
    queryable = bool(document.get("queryable"))
    vector: dict[str, Any]
    if document.get("type", "search") == "vectorSearch":
        fields = latest.get("fields") or []
        vector = next((one for one in fields if _is_ours(one)), {})
        return SearchIndex(
            name=name,
            status=status,
            queryable=queryable,
            legacy=False,
            dimensions=vector.get("numDimensions"),
            similarity=vector.get("similarity", ""),
            quantization=vector.get("quantization", "none"),
            filters=frozenset(
                str(one.get("path")) for one in fields if one.get("type") == "filter"
            ),
        )
    mappings = latest.get("mappings") or {}
    mapped = mappings.get("fields") or {}
    vector = next(
        (one for one in _listed(mapped.get(VECTOR)) if one.get("type") == "knnVector"), {}
    )
    return SearchIndex(
        name=name,
        status=status,
        queryable=queryable,
        legacy=True,
        dimensions=vector.get("dimensions"),
        similarity=vector.get("similarity", ""),
        filters=_DYNAMIC_FILTERS if mappings.get("dynamic") is True else frozenset(),
    )


def _serving(document: dict[str, Any]) -> dict[str, Any]:
    """The definition that answers queries now."""
    latest: dict[str, Any] = document.get("latestDefinition") or {}
    if document.get("status") == "READY" or not document.get("queryable"):
        return latest
    for host in document.get("statusDetail") or ():
        main = host.get("mainIndex") or {}
        if main.get("queryable") and main.get("definition"):
            return dict(main["definition"])
    return latest


def _is_ours(one: dict[str, Any]) -> bool:
    return one.get("type") == "vector" and one.get("path") == VECTOR


def _listed(value: Any) -> Sequence[dict[str, Any]]:
    return [value] if isinstance(value, dict) else value or []


def choose(indexes: Iterable[SearchIndex], dimensions: int, prefix: str) -> SearchIndex | None:
    """The index to ask: ours by name, then any of today's type, then a legacy one."""
    able = [index for index in indexes if index.serves(dimensions)]
    wanted = name_for(prefix, dimensions)
    return min(
        able,
        key=lambda index: (
            index.legacy,
            index.name not in (wanted, prefix),
            index.stale,
            index.name,
        ),
        default=None,
    )


def complaint(indexes: Sequence[SearchIndex], dimensions: int, prefix: str) -> str:
    """Why no index serves vectors of this length, and what to do."""
    building = [one for one in indexes if one.dimensions == dimensions and not one.queryable]
    if building:
        one = building[0]
        if one.status == "FAILED":
            return (
                f"Atlas failed to build the vector search index {one.name}: see it on the "
                "cluster's page, drop it there, and run `mapseek archive init`."
            )
        return (
            f"The vector search index {one.name} is still being built ({one.status}): "
            "`mapseek archive status` shows how far it is."
        )
    others = ", ".join(
        f"{one.name} (for {one.dimensions}, {one.similarity})"
        for one in indexes
        if one.dimensions is not None
    )
    beside = f" There is only {others}." if others else ""
    return (
        f"The collection has no vector search index for vectors of {dimensions} numbers "
        f"in {VECTOR} by cosine."
        f"{beside} Run `mapseek archive init --dimensions {dimensions}`, which makes "
        f"{name_for(prefix, dimensions)}."
    )
