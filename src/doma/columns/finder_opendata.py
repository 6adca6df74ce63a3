"""Records of the CERN Open Data portal: ``cernopendata://NUMBER``.

Source: ``GET /api/records/NUMBER`` of opendata.cern.ch: ``metadata.files`` with ``uri``, ``size`` and
``checksum``; long lists stand in file indices, either as ``metadata._file_indices[].files`` or as files named
``…_file_index.json``, whose content has the same fields.
"""

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from doma.columns.finder import MAX_FILES, FoundFile, by_preference, too_many
from doma.columns.finder_http import Catalogue, adler, whole
from doma.columns.model import Grant
from doma.core import config
from doma.core.errors import BadRequest, DomaError, NotFound, OriginFailed

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
        indices: list[str] = []
        for entry in self._entries(metadata):
            if entry[0].endswith("_file_index.json"):
                indices.append(entry[0])
            else:
                self._take(found, entry)
        if not metadata.get("_file_indices"):
            for uri in indices[:INDICES]:
                await self._unfold(found, uri)
        return found

    async def close(self) -> None:
        await self._server.close()

    def _entries(self, metadata: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        yield from _listed(metadata.get("files"))
        indices = metadata.get("_file_indices")
        for index in indices if isinstance(indices, list) else []:
            yield from _listed(index.get("files") if isinstance(index, dict) else None)

    async def _unfold(self, found: list[FoundFile], uri: str) -> None:
        """The files of an index, which the portal gives under its path, too."""
        path = quote("/" + urlsplit(uri).path.lstrip("/"), safe="/-_.~")
        for entry in _listed(await self._server.json(path)):
            self._take(found, entry)

    def _take(self, found: list[FoundFile], entry: tuple[str, Any, Any]) -> None:
        uri, size, checksum = entry
        if not uri.endswith(DATA):
            return
        urls = [uri]
        try:
            parts = urlsplit(uri)
        except ValueError:
            return
        if parts.scheme == "root" and parts.hostname == "eospublic.cern.ch":
            # The portal gives what lies in its own storage over HTTP as well.
            urls.append(f"{self._server.url}/{parts.path.lstrip('/')}")
        try:
            replicas = by_preference(urls, self._prefer)
        except DomaError:
            return
        if replicas:
            found.append(FoundFile(uri, replicas, whole(size), 0, adler(checksum)))
        if len(found) > MAX_FILES:
            raise too_many()


def _listed(files: Any) -> Iterator[tuple[str, Any, Any]]:
    for file in files if isinstance(files, list) else []:
        if isinstance(file, dict) and isinstance(file.get("uri"), str):
            yield file["uri"], file.get("size"), file.get("checksum")
