"""Datasets of this server's own catalogue: ``doma://name``."""

from collections.abc import Sequence

from doma.columns import dataset_catalogue
from doma.columns.finder import FoundFile, by_preference
from doma.columns.model import Grant
from doma.core import config
from doma.db.engine import Database


class CatalogueFinder:
    """The catalogue.

    Args:
        db: Where it is.
        section: Says which replicas are preferred.
    """

    word = dataset_catalogue.WORD
    private = True

    def __init__(self, db: Database, section: config.Datasets) -> None:
        self._db, self._prefer = db, section.prefer

    async def find(self, name: str, grant: Grant) -> Sequence[FoundFile]:
        name = dataset_catalogue.checked_name(name)
        found = await self._db.look(lambda tx: dataset_catalogue.files(tx, grant, name))
        return [
            FoundFile(f.name, by_preference(f.replicas, self._prefer), f.bytes, f.events, f.adler32)
            for f in found
        ]

    async def close(self) -> None:
        """The database is closed by who opened it."""
