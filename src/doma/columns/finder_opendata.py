"""Records of the CERN Open Data portal: ``cernopendata://NUMBER``.

Source: ``GET /api/records/NUMBER`` of opendata.cern.ch: ``metadata.files`` with ``uri``, ``size`` and
``checksum``; long lists stand in file indices, either as ``metadata._file_indices[].files`` or as files named
``…_file_index.json``, whose content has the same fields.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from doma.columns.finder import MAX_FILES, FoundFile, by_preference, too_many
from doma.columns.finder_http import Catalogue, adler, whole
from doma.columns.model import Grant
from doma.core import config
from doma.core.errors import BadPath, BadRequest, NotFound, OriginFailed
from doma.core.paths import checked, encode

Entry = tuple[str, Any, Any]
"""URL, size and checksum as told."""
INDICES = 1000
DATA = (".root", ".parquet")
"""What can be read as columns; other files of a record are left out."""


class OpenDataFinder:
    """The portal."""

    word = "cernopendata"
    private = False

    def __init__(self, section: config.Datasets) -> None:
        self._server = Catalogue(section.opendata)
        self._prefer = section.prefer

    async def find(self, name: str, grant: Grant) -> Sequence[FoundFile]:
        if not name.isascii() or not name.isdigit() or len(name) > 12:
            raise BadRequest(f"cernopendata://{name[:50]}: a record has a number, such as 1507")
        path = f"/api/records/{name}"
        try:
            record = await self._server.json(path)
        except NotFound as e:
            raise NotFound(f"cernopendata://{name}: there is no such record") from e
        metadata = record.get("metadata") if isinstance(record, dict) else None
        if not isinstance(metadata, dict):
            raise OriginFailed(f"{self._server.url}{path}: the answer is not that of a record")
        found: list[FoundFile] = []
        # Of many files this takes seconds.
        indices = await asyncio.to_thread(self._take, found, self._entries(metadata))
        if not metadata.get("_file_indices"):
            for uri in indices[:INDICES]:
                listed = await self._server.json(_path(uri))
                await asyncio.to_thread(self._take, found, _listed(listed))
        return found

    async def close(self) -> None:
        await self._server.close()

    def _entries(self, metadata: dict[str, Any]) -> Iterator[Entry]:
        yield from _listed(metadata.get("files"))
        indices = metadata.get("_file_indices")
        for index in indices if isinstance(indices, list) else []:
            yield from _listed(index.get("files") if isinstance(index, dict) else None)

    def _take(self, found: list[FoundFile], entries: Iterable[Entry]) -> list[str]:
        """Add files to those that were found; returns the indices among them."""
        indices = []
        for uri, size, checksum in entries:
            if uri.endswith("_file_index.json"):
                indices.append(uri)
            elif uri.endswith(DATA) and (replicas := self._replicas(uri)):
                found.append(FoundFile(uri, replicas, whole(size), 0, adler(checksum)))
            if len(found) > MAX_FILES:
                raise too_many()
        return indices

    def _replicas(self, uri: str) -> tuple[str, ...]:
        try:
            parts = urlsplit(uri)
        except ValueError:
            return ()
        # The portal gives what lies in its own storage over HTTP as well.
        own = parts.scheme == "root" and parts.hostname == "eospublic.cern.ch"
        more = [f"{self._server.url}/{parts.path.lstrip('/')}"] if own else []
        return by_preference([uri, *more], self._prefer)


def _path(uri: str) -> str:
    """Where the portal gives an index. Raises OriginFailed: it is no path below the portal."""
    try:
        return encode(checked("/" + urlsplit(uri).path.lstrip("/")))
    except (ValueError, BadPath) as e:
        raise OriginFailed(f"{uri[:200]!a}: the portal names a file index that has no path") from e


def _listed(files: Any) -> Iterator[Entry]:
    for file in files if isinstance(files, list) else []:
        if isinstance(file, dict) and isinstance(file.get("uri"), str):
            yield file["uri"], file.get("size"), file.get("checksum")
