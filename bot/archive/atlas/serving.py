"""Which search index answers now, and how thoroughly it is asked."""

import logging
import time

from bot.archive.atlas import indexes
from bot.archive.atlas.driver import Driver
from bot.archive.atlas.indexes import SearchIndex
from bot.archive.port import ArchiveError, ForbiddenError
from bot.settings import BotSettings

_log = logging.getLogger("mapseek.archive")

# How long the list of indexes and the number of documents are believed.
_INDEXES_S = 60.0
_COUNT_S = 60.0
# Indexes of the old kind were made to be asked approximately; and without filters by text, most
# of what they find is thrown away again.
_LEGACY_CANDIDATES = 10


class Serving:
    """Remembers for a while what Atlas told about the collection's indexes and size."""

    def __init__(self, driver: Driver, settings: BotSettings) -> None:
        self._driver = driver
        self._prefix = settings.atlas_index
        self._quantization = settings.atlas_quantization
        self._exact_limit = settings.atlas_exact_limit
        self._candidates = settings.atlas_candidates
        self._indexes: list[SearchIndex] = []
        self._looked_at_s = -_INDEXES_S
        self._count = 0
        self._counted_at_s = -_COUNT_S

    async def index_for(self, dimensions: int) -> SearchIndex:
        """The index that answers queries of this length.

        Raises:
            ArchiveError: None does; the sentence says why.
        """
        chosen = None
        if time.monotonic() - self._looked_at_s < _INDEXES_S:
            chosen = indexes.choose(self._indexes, dimensions, self._prefix)
        # One of the old kind is on its way out: `migrate` changes what it reads, then drops it.
        if chosen is None or chosen.legacy:
            await self._look(dimensions)
            chosen = indexes.choose(self._indexes, dimensions, self._prefix)
        if chosen is None:
            raise ArchiveError(indexes.complaint(self._indexes, dimensions, self._prefix))
        return chosen

    async def still_serves(self, index: SearchIndex, dimensions: int) -> bool:
        """Whether an index that found nothing is there at all: Atlas does not say so by itself."""
        await self._look(dimensions)
        return any(one.name == index.name and one.serves(dimensions) for one in self._indexes)

    async def candidates(self, index: SearchIndex, limit: int) -> int | None:
        """How many candidates a search for so many documents looks at; None for all."""
        if index.legacy:
            return limit * max(_LEGACY_CANDIDATES, self._candidates)
        now_s = time.monotonic()
        if now_s - self._counted_at_s >= _COUNT_S:
            self._count = await self._driver.count()
            self._counted_at_s = now_s
        return None if self._count <= self._exact_limit else limit * self._candidates

    async def _look(self, dimensions: int) -> None:
        try:
            known = await self._driver.search_indexes()
            self._indexes = [indexes.read(one, serving=True) for one in known]
        except ForbiddenError:
            name = indexes.name_for(self._prefix, dimensions)
            _log.warning(
                "Atlas does not tell which search indexes there are, so %s is taken to be there.",
                name,
            )
            self._indexes = [indexes.assumed(name, dimensions, self._quantization)]
        self._looked_at_s = time.monotonic()
