"""What Atlas's search server does, in miniature: index definitions, filters, cosine, and errors.

Written from MongoDB's documentation and the behaviour of its search server, which answers with
silence whatever it takes for "nothing found". Compares every vector: all that an approximate search
does otherwise is that over an index with scalar quantization it compares rounded vectors.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

Document = dict[str, Any]


class SearchError(Exception):
    """What the server answers instead."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def user_error(message: str) -> SearchError:
    # The search server sends no codes, so MongoDB reports all of these as 8, UnknownError.
    return SearchError(8, f"PlanExecutor error during aggregation :: caused by :: {message}")


def nearest(
    stage: Mapping[str, Any], index: Mapping[str, Any], documents: Iterable[Document]
) -> list[tuple[Any, float]]:
    """The ids of the nearest documents with their scores, best first.

    Args:
        stage: The body of `$vectorSearch`.
        index: `type` and `latestDefinition` of the index that it names.
        documents: What the index has seen of the collection.
    """
    limit = _checked(stage)
    vector, filters = _mapped(index, stage["path"])
    dimensions = vector.get("numDimensions", vector.get("dimensions"))
    asked = vector_of(stage["queryVector"])
    if asked is None or not np.all(np.isfinite(asked)):
        raise user_error("'queryVector' contains a non-finite value")
    if asked.size != dimensions:
        raise user_error(
            f"vector field is indexed with {dimensions} dimensions but queried with {asked.size}"
        )
    if not asked.any():
        raise user_error("Cosine similarity cannot be calculated against a zero vector.")
    admits = _filter(stage.get("filter", {}), filters)
    rounds = vector.get("quantization") == "scalar" and not stage.get("exact")
    if rounds:
        asked = _rounded(asked)
    scored = []
    for document in documents:
        stored = vector_of(_at(document, stage["path"]))
        # Documents whose vector does not fit are not indexed, and nobody is told.
        if stored is None or stored.size != dimensions or not stored.any():
            continue
        # Indexes of the old kind are documented to read doubles.
        if index["type"] != "vectorSearch" and isinstance(_at(document, stage["path"]), bytes):
            continue
        if admits(document):
            if rounds:
                stored = _rounded(stored)
            cosine = stored @ asked / (np.linalg.norm(stored) * np.linalg.norm(asked))
            scored.append((document["_id"], float(np.float32((1 + cosine) / 2))))
    scored.sort(key=lambda one: -one[1])
    return scored[:limit]


def _rounded(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """A vector as one byte holds each of its numbers."""
    rounded: NDArray[np.float64] = np.round(127 * vector / np.abs(vector).max())
    return rounded


def vector_of(value: Any) -> NDArray[np.float64] | None:
    """A vector as documents and queries hold it: BinData of float32, or an array of numbers."""
    if isinstance(value, bytes) and value[:1] == b"\x27":
        return np.frombuffer(value, "<f4", offset=2).astype(np.float64)
    if isinstance(value, list) and value and all(isinstance(one, int | float) for one in value):
        return np.asarray(value, np.float64)
    return None


def _checked(stage: Mapping[str, Any]) -> int:
    limit = stage.get("limit")
    if not isinstance(limit, int | float):
        raise SearchError(8575100, "Expected limit to be a number")
    if limit <= 0:
        raise SearchError(7912700, "limit must be positive")
    candidates = stage.get("numCandidates")
    if stage.get("exact"):
        if candidates is not None:
            raise user_error('"numCandidates" must be omitted when "exact" is set to true')
    elif candidates is None:
        raise user_error("numCandidates is required for approximate vector search")
    elif not 1 <= candidates <= 10_000:
        raise user_error('"numCandidates" must be within bounds [1, 10000]')
    elif limit > candidates:
        raise user_error('"limit" must be less than or equal to "numCandidates"')
    return int(limit)


# The field types by which an index of the old kind can filter when it maps whatever it meets.
_DYNAMIC = (bool, int, float, datetime, ObjectId)


def _mapped(
    index: Mapping[str, Any], path: str
) -> tuple[Mapping[str, Any], Callable[[str, Any], str | None]]:
    """The vector field of an index, and what it says to a filter by some field and value."""
    definition = index["latestDefinition"]
    if index["type"] == "vectorSearch":
        fields = definition["fields"]
        vectors = [one for one in fields if one["type"] == "vector" and one["path"] == path]
        if not vectors:
            raise user_error(f"{path} is not indexed as vector")
        paths = {one["path"] for one in fields if one["type"] == "filter"}
        return vectors[0], lambda name, _: None if name in paths else "filter"
    mappings = definition["mappings"]
    field = mappings.get("fields", {}).get(path, {})
    if field.get("type") != "knnVector":
        raise user_error(f'{path} must be indexed as "vector".')

    def by_type(_: str, value: Any) -> str | None:
        if isinstance(value, str) or not mappings.get("dynamic"):
            return "token"
        return None if isinstance(value, _DYNAMIC) else "token"

    return field, by_type


def _filter(
    conditions: Mapping[str, Any], refuses: Callable[[str, Any], str | None]
) -> Callable[[Document], bool]:
    """A filter as a function, after a look at whether the index can answer it."""
    tests: list[Callable[[Document], bool]] = []
    for path, wanted in conditions.items():
        if path in ("$and", "$or", "$nor"):
            parts = [_filter(one, refuses) for one in wanted]
            tests.append(_combined(path, parts))
            continue
        operators = wanted if _is_operators(wanted) else {"$eq": wanted}
        for operator, value in operators.items():
            for one in value if isinstance(value, list) else [value]:
                if (kind := refuses(path, one)) is not None:
                    raise user_error(f"Path '{path}' needs to be indexed as {kind}")
            if operator not in _OPERATORS:
                raise user_error(f'"filter" has an operator that it does not know: {operator}')
            tests.append(_tested(path, _OPERATORS[operator], value))
    return lambda document: all(test(document) for test in tests)


def _combined(operator: str, parts: list[Callable[[Document], bool]]) -> Callable[[Document], bool]:
    if operator == "$and":
        return lambda document: all(part(document) for part in parts)
    wanted = operator == "$or"
    return lambda document: any(part(document) for part in parts) is wanted


def _is_operators(wanted: Any) -> bool:
    return isinstance(wanted, dict) and any(name.startswith("$") for name in wanted)


def _tested(
    path: str, operator: Callable[[Any, Any], bool], wanted: Any
) -> Callable[[Document], bool]:
    return lambda document: operator(_at(document, path), wanted)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda value, wanted: type(value) is type(wanted) and compare(value, wanted)


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda value, wanted: bool(value == wanted),
    "$ne": lambda value, wanted: bool(value != wanted),
    "$in": lambda value, wanted: value in wanted,
    "$nin": lambda value, wanted: value not in wanted,
    "$exists": lambda value, wanted: (value is not None) is bool(wanted),
    "$gt": _ordered(lambda value, wanted: value > wanted),
    "$gte": _ordered(lambda value, wanted: value >= wanted),
    "$lt": _ordered(lambda value, wanted: value < wanted),
    "$lte": _ordered(lambda value, wanted: value <= wanted),
}


def _at(document: Any, path: str) -> Any:
    for name in path.split("."):
        document = document.get(name) if isinstance(document, dict) else None
    return document


def check_definition(kind: str, definition: Mapping[str, Any]) -> None:
    """Raises what the server says to a definition that it does not take."""
    if kind != "vectorSearch":
        return
    for one in definition.get("fields", []):
        if one.get("type") != "vector":
            continue
        if not 1 <= one.get("numDimensions", 0) <= 8192:
            raise SearchError(8, '"numDimensions" must be within bounds [1, 8192]')
        if one.get("similarity") not in ("cosine", "dotProduct", "euclidean"):
            raise SearchError(8, '"similarity" must be one of cosine, dotProduct, euclidean')
        if one.get("quantization", "none") not in ("none", "scalar", "binary"):
            raise SearchError(8, '"quantization" must be one of none, scalar, binary')
        if one.get("quantization") == "binary" and one["numDimensions"] % 8:
            raise SearchError(8, '"numDimensions" must be divisible by 8 for binary quantization')


def project(document: Document, fields: Mapping[str, Any], score: float) -> Document:
    """A `$project` that names what it keeps, and may ask for the score."""
    kept: Document = {} if fields.get("_id") == 0 else {"_id": document["_id"]}
    for name, wanted in fields.items():
        if wanted == {"$meta": "vectorSearchScore"}:
            kept[name] = score
        elif wanted in (1, True):
            assert "." not in name, "this miniature keeps whole fields only"
            if name in document:
                kept[name] = document[name]
        elif not (name == "_id" and wanted == 0):
            raise SearchError(238, f"this miniature cannot project {name}: {wanted}")
    return kept
