"""Asking for columns: submit, wait, read the result. The same code in one process and over the network.

Example:
    async with httpx.AsyncClient(base_url=endpoint, headers={"Authorization": f"Bearer {token}"}) as http:
        table = await ColumnClient(http).columns(query, ["https://data.example.org/site/a.root"])
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from doma.columns.model import State
from doma.core.errors import (
    Cancelled,
    ConfigError,
    CorruptFile,
    NotFound,
    StorageUnavailable,
    TimedOut,
    WrongSize,
)
from doma.net.problem import raise_for

if TYPE_CHECKING:
    import pyarrow as pa

ROOT = "servicex/transformation"
FORMATS = {"root-ttree": "root-file"}
"""Formats as users may write them, to those of the wire."""


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

    async def offered(self) -> dict[str, Any]:
        """What the service is and can: ``app-version``, ``code-gen-image``, ``capabilities``."""
        return await self._call("GET", "servicex")

    async def submit(
        self,
        selection: str,
        files: Sequence[str] = (),
        *,
        did: str | None = None,
        codegen: str = "uproot",
        format: str = "parquet",
        title: str | None = None,
    ) -> str:
        """Ask; returns the request's id at once.

        Args:
            selection: The query, in the words of ``codegen``.
            files: URLs of the inputs.
            did: A dataset instead of files: ``scheme://name[?files=N]``.
            codegen: The language: ``uproot`` (qastle text), ``uproot-raw``, ``python``.
            format: ``parquet``, ``root-ttree`` or ``root-rntuple``.
            title: For people.

        Raises:
            BadQuery, UnknownColumn, …: as the service says.
        """
        body = {
            "selection": selection,
            "codegen": codegen,
            "result-destination": "object-store",
            "result-format": FORMATS.get(format, format),
        }
        body |= {"title": title} if title else {}
        inputs: dict[str, Any] = {"file-list": list(files)} if did is None else {"did": did}
        return str((await self._call("POST", f"{ROOT}?wait=0", json=body | inputs))["request_id"])

    async def requests(self) -> list[dict[str, Any]]:
        """One's own requests, youngest first."""
        found: list[dict[str, Any]] = (await self._call("GET", ROOT))["requests"]
        return found

    async def status(self, id_: str, *, wait: float = 3.0, details: bool = False) -> dict[str, Any]:
        """The status record; held by the service for up to 3 s while the request runs."""
        asked = f"wait={wait:g}" + ("&details=true" if details else "")
        return await self._call("GET", f"{ROOT}/{quote(id_)}/status?{asked}")

    async def watch(self, id_: str) -> AsyncIterator[dict[str, Any]]:
        """Its progress, live, until it has ended; the service's ``Progressed`` with its ``status``."""
        path = f"{ROOT}/{quote(id_)}/events"
        try:
            async with self._http.stream("GET", path, timeout=60) as answer:
                if answer.is_error:
                    await answer.aread()
                raise_for(answer)
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))
        except httpx.HTTPError as e:
            raise _silent("GET", path, e) from e

    async def wait(
        self, id_: str, timeout: float = 600.0, tell: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """The status record of the ended request.

        Args:
            id_: The request.
            timeout: Seconds.
            tell: Hears of its progress, see :meth:`watch`.

        Raises:
            CorruptFile: every file failed; the message is the first reason. NotFound: the dataset is not
                there. Cancelled. TimedOut.
        """
        try:
            async with asyncio.timeout(timeout):
                if tell is not None:
                    async for state in self.watch(id_):
                        tell(state)
                while not State((found := await self.status(id_))["status"]).final:
                    pass  # each call waits at the service
        except TimeoutError as e:
            raise TimedOut(
                f"request {id_}: not finished after {timeout:.0f} s; it goes on at the service"
            ) from e
        match State(found["status"]):
            case State.CANCELED:
                raise Cancelled(f"request {id_}: it was canceled")
            case State.BAD:
                raise NotFound(f"request {id_}: its dataset cannot be used: {found['failure-info']}")
            case State.FATAL:
                raise CorruptFile(f"request {id_}: no file could be delivered: {found['failure-info']}")
            case _:
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

    async def cancel_all(self) -> list[str]:
        """Stop all one's own requests; the ids of those that ran."""
        stopped: list[str] = (await self._call("POST", f"{ROOT}/cancel-all"))["canceled"]
        return stopped

    async def delete(self, id_: str) -> None:
        """Remove an ended request and its results."""
        await self._call("DELETE", f"{ROOT}/{quote(id_)}")

    async def columns(
        self,
        selection: str,
        files: Sequence[str] = (),
        *,
        did: str | None = None,
        codegen: str = "uproot",
        timeout: float = 600.0,
        partial: bool = False,
        tell: Callable[[dict[str, Any]], None] | None = None,
    ) -> "pa.Table":
        """Ask, wait, read: one table of all files in the order given.

        Args:
            selection: The query, in the words of ``codegen``.
            files: URLs of the inputs.
            did: A dataset instead of files.
            codegen: The language.
            timeout: Seconds to wait for the request.
            tell: Hears of its progress, see :meth:`watch`.
            partial: Take what there is when some files failed; otherwise that is CorruptFile.
        """
        import pyarrow as pa

        id_ = await self.submit(selection, files, did=did, codegen=codegen)
        found = await self.wait(id_, timeout, tell)
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
            raise _silent("GET", f"result {result.name}", e) from e
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

    async def download(self, result: Delivered, folder: Path) -> Path:
        """One result as a file of the folder, under its own name, in place of what had it.

        Raises:
            WrongSize: other bytes came than were announced; nothing is left behind. ConfigError: the folder.
        """
        name = result.name.replace("/", "_")
        target, part = folder / name, folder / f".{name}.part"
        try:
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            async with self._results.stream("GET", result.url, headers=result.headers, timeout=60) as answer:
                if answer.is_error:
                    await answer.aread()
                raise_for(answer)
                with part.open("wb") as file:
                    async for piece in answer.aiter_raw(1 << 20):
                        await asyncio.to_thread(file.write, piece)
                    size = file.tell()
            if size != result.bytes:
                raise WrongSize(f"result {name}: {size} bytes came, {result.bytes} were announced; ask again")
            os.replace(part, target)
        except httpx.HTTPError as e:
            raise _silent("GET", f"result {name}", e) from e
        except OSError as e:
            raise ConfigError(f"{target}: cannot be written: {e.strerror}") from e
        finally:
            part.unlink(missing_ok=True)
        self.received += result.bytes
        return target

    async def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer = raise_for(await self._http.request(method, path, timeout=30, **arguments))
        except httpx.HTTPError as e:
            raise _silent(method, path, e) from e
        found: dict[str, Any] = answer.json()
        return found


def _silent(method: str, what: str, error: httpx.HTTPError) -> StorageUnavailable:
    return StorageUnavailable(
        f"{method} {what}: the service does not answer: {str(error) or type(error).__name__}"
    )


def _delivered(row: dict[str, Any], uri: list[Any]) -> Delivered:
    url, headers, _ = uri
    told = (row[key] for key in ("total-bytes", "total-events", "file-path", "input-bytes"))
    return Delivered(row["s3-object-name"], url, headers, *told)
