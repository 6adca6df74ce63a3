"""Asking for columns: submit, wait, read the result. The same code in one process and over the network.

Example:
    async with httpx.AsyncClient(base_url=endpoint, headers={"Authorization": f"Bearer {token}"}) as http:
        table = await ColumnClient(http).columns(query, ["https://data.example.org/site/a.root"])
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from doma.columns.model import State
from doma.core.errors import Cancelled, CorruptFile, StorageUnavailable, TimedOut, WrongSize
from doma.net.problem import raise_for

if TYPE_CHECKING:
    import pyarrow as pa

ROOT = "servicex/transformation"


@dataclass(frozen=True, slots=True)
class Delivered:
    """One result object."""

    name: str
    url: str
    headers: dict[str, str]
    bytes: int
    rows: int
    source: str
    """The input file."""
    read: int
    """Bytes that the service took from it."""


class ColumnClient:
    """A user of a column service.

    Args:
        http: Its ``base_url`` is the service's endpoint, its headers hold the bearer token.
        results: For reading results (another host, another CA); without it ``http`` is used. URLs carry
            their own credential.
    """

    def __init__(self, http: httpx.AsyncClient, results: httpx.AsyncClient | None = None) -> None:
        self._http, self._results = http, results or http
        self.received = 0
        """Bytes of results read so far."""
        self.read_bytes = 0
        """Bytes that the service took from the inputs of these results."""

    async def submit(self, selection: str, files: Sequence[str], *, title: str | None = None) -> str:
        """Ask; returns the request's id. Raises BadQuery, UnknownColumn, … as the service says."""
        body = {
            "selection": selection,
            "file-list": list(files),
            "codegen": "uproot",
            "result-destination": "object-store",
            "result-format": "parquet",
        }
        return str(
            (await self._call("POST", ROOT, json=body | ({"title": title} if title else {})))["request_id"]
        )

    async def status(self, id_: str) -> dict[str, Any]:
        """The status record; held by the service for up to 3 s while the request runs."""
        return await self._call("GET", f"{ROOT}/{quote(id_)}/status")

    async def wait(self, id_: str, timeout: float = 600.0) -> dict[str, Any]:
        """The status record of the ended request.

        Raises:
            CorruptFile: every file failed; the message is the first reason. Cancelled. TimedOut.
        """
        try:
            async with asyncio.timeout(timeout):
                while not State((found := await self.status(id_))["status"]).final:
                    pass  # each call waits at the service
        except TimeoutError as e:
            raise TimedOut(
                f"request {id_}: not finished after {timeout:.0f} s; it goes on at the service"
            ) from e
        if found["status"] == State.CANCELED:
            raise Cancelled(f"request {id_}: it was canceled")
        if found["status"] == State.FATAL:
            raise CorruptFile(f"request {id_}: no file could be delivered: {found['failure-info']}")
        return found

    async def urls(self, id_: str) -> list[Delivered]:
        """The results so far, in the order of the input files; each URL works by itself."""
        rows = (await self._call("GET", f"{ROOT}/{quote(id_)}/results"))["results"]
        done = sorted((r for r in rows if r["transform_status"] == "success"), key=lambda r: r["file-id"])
        body = {"request_id": id_, "file_list": [r["s3-object-name"] for r in done], "scheme": "http"}
        uris = (await self._call("POST", f"{ROOT}/file-urls", json=body))["uris"]
        return [_delivered(r, uris[r["s3-object-name"]]) for r in done]

    async def cancel(self, id_: str) -> None:
        """Stop a request."""
        await self._call("POST", f"{ROOT}/{quote(id_)}/cancel")

    async def delete(self, id_: str) -> None:
        """Remove an ended request and its results."""
        await self._call("DELETE", f"{ROOT}/{quote(id_)}")

    async def columns(
        self, selection: str, files: Sequence[str], *, timeout: float = 600.0, partial: bool = False
    ) -> "pa.Table":
        """Ask, wait, read: one table of all files in the order given.

        Args:
            selection: The query as qastle text.
            files: URLs of the inputs.
            timeout: Seconds to wait for the request.
            partial: Take what there is when some files failed; otherwise that is CorruptFile.
        """
        import pyarrow as pa

        id_ = await self.submit(selection, files)
        found = await self.wait(id_, timeout)
        if found["files-failed"] and not partial:
            raise CorruptFile(
                f"request {id_}: {found['files-failed']} of {found['files']} files failed: "
                f"{found['failure-info']}"
            )
        tables = [await self.read(r) for r in await self.urls(id_)]
        return pa.concat_tables(tables, promote_options="default") if tables else pa.table({})

    async def read(self, result: Delivered) -> "pa.Table":
        """One result as a table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            answer = raise_for(await self._results.get(result.url, headers=result.headers))
        except httpx.HTTPError as e:
            raise StorageUnavailable(
                f"result {result.name}: cannot be read: {str(e) or type(e).__name__}"
            ) from e
        if len(answer.content) != result.bytes:
            raise WrongSize(
                f"result {result.name}: {len(answer.content)} bytes came, {result.bytes} were announced"
            )
        self.received += len(answer.content)
        self.read_bytes += result.read
        # Into memory of Arrow's own: its I/O threads would let go of a Python object while the interpreter
        # ends, and the process would abort.
        held = pa.BufferOutputStream()
        held.write(answer.content)
        return pq.read_table(pa.BufferReader(held.getvalue()))

    async def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer = raise_for(await self._http.request(method, path, timeout=30, **arguments))
        except httpx.HTTPError as e:
            raise StorageUnavailable(
                f"{method} {path}: the service does not answer: {str(e) or type(e).__name__}"
            ) from e
        found: dict[str, Any] = answer.json()
        return found


def _delivered(row: dict[str, Any], uri: list[Any]) -> Delivered:
    url, headers, _ = uri
    return Delivered(
        row["s3-object-name"],
        url,
        headers,
        row["total-bytes"],
        row["total-events"],
        row["file-path"],
        row["input-bytes"],
    )
