"""Routes of datasets: ServiceX's views of what was looked up, and this server's own catalogue.

Source: servicex.md §3.6 of the project's contracts.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from doma.columns import dataset_catalogue as catalogue
from doma.columns.dataset_repo import File, Found
from doma.columns.datasets import Datasets
from doma.columns.finder import MAX_FILES, MAX_REPLICAS, FoundFile
from doma.columns.finder_http import LARGEST
from doma.columns.model import Grant
from doma.columns.remote import check_url
from doma.columns.routes import Caller, body_of, written
from doma.columns.wire import moment
from doma.core.checksum import parse_checksum
from doma.core.errors import BadRequest, NotFound

MAX_BODY = 64 << 20
ROOT = "/api/v1/datasets"


class FileBody(BaseModel):
    """One file of the catalogue."""

    model_config = ConfigDict(extra="forbid")

    replicas: list[str] = Field(min_length=1, max_length=MAX_REPLICAS)
    name: str = Field(default="", max_length=2000)
    """What the file is called in the dataset; empty: its first URL."""
    bytes: int = Field(default=0, ge=0, lt=LARGEST)
    events: int = Field(default=0, ge=0, lt=LARGEST)
    adler32: str | None = None


class DatasetBody(BaseModel):
    """Files for a dataset of the catalogue."""

    model_config = ConfigDict(extra="forbid")

    files: list[FileBody] = Field(default=[], fail_fast=True, max_length=MAX_FILES)
    shared: bool | None = None
    replace: bool = False


def router(service: Datasets, caller: Caller, allow: Sequence[str] = ()) -> APIRouter:
    """The routes.

    Args:
        service: What answers.
        caller: Who asks.
        allow: Of inputs: ``file://`` where local paths may be read.
    """
    api = APIRouter(tags=["datasets"], redirect_slashes=False)
    Who = Annotated[Grant, Depends(caller)]
    Finder = Annotated[str | None, Query(alias="did-finder", max_length=64)]

    @api.get("/servicex/datasets")
    async def listing(
        who: Who, finder: Finder = None, deleted: Annotated[str, Query(alias="show-deleted")] = ""
    ) -> dict[str, Any]:
        stale = deleted.lower() in {"true", "1", "yes"}
        return {"datasets": [_dataset(d) for d in await service.mine(who.owner, finder, stale=stale)]}

    @api.get("/servicex/datasets/{id_}")
    async def one(id_: str, who: Who) -> JSONResponse:
        found, files = await service.show(who.owner, _number(id_))
        return await written(lambda: {**_dataset(found), "files": [_file(f) for f in files]})

    @api.delete("/servicex/datasets/{id_}")
    async def forget(id_: str, who: Who) -> dict[str, Any]:
        await service.forget(who.owner, _number(id_))
        return {"dataset-id": int(id_), "stale": True}

    @api.get(ROOT)
    async def entries(who: Who) -> dict[str, Any]:
        found = await service.catalogue(partial(catalogue.listed, grant=who))
        return {"datasets": [_entry(e, who) for e in found]}

    @api.get(ROOT + "/{name:path}")
    async def entry(name: str, who: Who) -> JSONResponse:
        files = await service.catalogue(partial(catalogue.files, grant=who, name=name))
        return await written(lambda: {"name": name, "files": [asdict(f) for f in files]})

    @api.put(ROOT + "/{name:path}")
    async def put(name: str, request: Request, who: Who) -> dict[str, Any]:
        body = await body_of(request, DatasetBody, request.url.path, MAX_BODY)
        found = await asyncio.to_thread(_all_checked, body.files, allow)
        made = await service.change(
            lambda tx, now: catalogue.put(tx, who, name, found, now, shared=body.shared, replace=body.replace)
        )
        return _entry(made, who)

    @api.delete(ROOT + "/{name:path}", status_code=204)
    async def remove(name: str, who: Who) -> None:
        await service.change(lambda tx, now: catalogue.remove(tx, who, name))

    return api


def _all_checked(files: Sequence[FileBody], allow: Sequence[str]) -> list[FoundFile]:
    return [_checked(file, number, allow) for number, file in enumerate(files)]


def _checked(file: FileBody, number: int, allow: Sequence[str]) -> FoundFile:
    """A file as it is stored. Raises BadRequest."""
    for url in file.replicas:
        check_url(url, allow)
    if not file.name.isprintable():
        raise BadRequest(f"files.{number}.name: it must be printable")
    adler32 = None if file.adler32 is None else parse_checksum("adler32", file.adler32)
    name = file.name or file.replicas[0]
    return FoundFile(name, tuple(file.replicas), file.bytes, file.events, adler32)


def _number(text: str) -> int:
    """The number of a dataset; what is none is a number that nothing has."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise NotFound(f"dataset {text[:40]!a}: there is none of that number among those of your requests")
    return int(text)


def _entry(e: catalogue.Entry, who: Grant) -> dict[str, Any]:
    fields = {"name": e.name, "shared": e.shared, "mine": e.owner == who.owner, "changed": moment(e.changed)}
    return {**fields, "files": e.files, "bytes": e.bytes, "events": e.events}


def _dataset(d: Found) -> dict[str, Any]:
    return {
        "id": d.id, "name": d.name, "did_finder": d.finder, "n_files": d.files, "size": d.bytes,
        "events": d.events, "last_used": moment(d.used), "last_updated": moment(d.updated),
        "lookup_status": d.state.value, "is_stale": d.stale,
    }  # fmt: skip


def _file(f: File) -> dict[str, Any]:
    return {
        "id": f.id, "adler32": f.file.adler32, "file_size": f.file.bytes, "file_events": f.file.events,
        "paths": ",".join(f.file.replicas),
    }  # fmt: skip
