"""Requests and results in ServiceX's words: what clients send, and the exact types of what they read.

Source: servicex.md §3.2 to §3.5 of the project's contracts.
"""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from doma import __version__
from doma.columns import model
from doma.columns.model import FileState, Submission
from doma.core.errors import BadQuery

VERSION = f"doma {__version__}"


class SubmitBody(BaseModel):
    """§3.2; clients send more keys than mean anything here."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, strict=True)

    selection: str
    title: str | None = Field(default=None, max_length=10240)
    did: str | None = None
    file_list: list[str] | None = Field(default=None, alias="file-list", fail_fast=True)
    codegen: str = Field(default="uproot", max_length=100)
    destination: Literal["object-store", "volume"] = Field(default="object-store", alias="result-destination")
    format: Literal["parquet", "root-file", "root-rntuple"] = Field(default="parquet", alias="result-format")

    def submission(self) -> Submission:
        """What it asks for. Raises BadQuery."""
        if (self.did is None) == (self.file_list is None):
            raise BadQuery("Invalid transform request: give either did or file-list, not both")
        if self.destination != "object-store":
            raise BadQuery(
                "result-destination: 'volume' is not offered here, no folder is configured for it; "
                "ask for 'object-store' and download the results"
            )
        files = tuple(self.file_list or ())
        return Submission(
            self.selection, files, self.title, self.did, self.codegen, self.format, self.destination
        )


class UrlsBody(BaseModel):
    """§3.5."""

    model_config = ConfigDict(extra="ignore")

    request_id: str
    file_list: list[str] = Field(max_length=100_000, fail_fast=True)
    scheme: Literal["http", "xrootd"] | None = "http"


def record(r: model.Request, log_url: str) -> dict[str, Any]:
    """A request; no key is ever null that a client needs."""
    return {
        "request_id": r.id, "title": r.title, "did": r.did, "did_id": r.dataset or 0,
        "selection": r.selection, "tree-name": None, "image": "builtin", "workers": 1,
        "result-destination": r.destination, "result-format": r.format, "generated-code-cm": "",
        "code-gen-image": "builtin", "codegen": r.codegen, "app-version": VERSION, "status": r.state.value,
        "failure-info": r.failure, "files": r.files, "files-completed": r.completed,
        "files-failed": r.failed, "files-remaining": max(0, r.files - r.completed - r.failed),
        "submit-time": moment(r.submitted), "log-url": log_url,
        "finish-time": "None" if r.finished is None else moment(r.finished),
        "total-events": r.events, "total-bytes": r.bytes, "input-bytes": r.read,
    }  # fmt: skip


def result(r: model.FileResult) -> dict[str, Any]:
    """One finished file."""
    # Naive UTC: the client forces the offset on. Built from integers, so that no microsecond is lost.
    seconds, micro = divmod(r.visible, 1_000_000)
    seen = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None, microsecond=micro)
    return {
        "id": r.id, "request-id": r.request, "file-id": r.number, "file-path": r.url,
        "transform_status": "success" if r.state is FileState.DONE else "failure",
        "transform_time": round(r.seconds), "total-events": r.events, "total-bytes": r.bytes,
        "avg-rate": r.events / r.seconds if r.seconds else 0.0, "s3-object-name": r.name or "",
        "created_at": seen.isoformat(timespec="microseconds"), "reason": r.reason,
        "input-bytes": r.read,
    }  # fmt: skip


def detail(r: model.FileResult) -> dict[str, Any]:
    """One file in any state, with all that is known of it."""
    return result(r) | {
        "transform_status": r.state.value, "attempt": r.attempt, "cached": r.cached, "pushed": r.pushed,
        "entries": r.entries, "passed": r.passed, "place": r.place, "log": r.log,
        "history": [dict(h) for h in r.history],
    }  # fmt: skip


def stats(p: model.Progressed) -> dict[str, Any]:
    """What the files of a request made together."""
    return {
        "total-events": p.events, "total-bytes": p.bytes, "input-bytes": p.read, "input-events": p.passed,
        "total-time": p.seconds, "min-time": p.quickest, "max-time": p.slowest,
        "avg-rate": p.events / p.seconds if p.seconds else 0.0, "files-running": p.running,
        "files-filtered-beside-data": p.pushed,
    }  # fmt: skip


def moment(seconds: float) -> str:
    """Unix seconds as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def instant(text: str) -> int:
    """Microseconds of ``later_than``; without offset it is UTC. Raises BadQuery (never on a client's own).

    >>> instant("1970-01-01T00:00:01"), instant("0001-01-01T00:00:00 00:00"), instant("")
    (1000000, -1, -1)
    """
    if not text:
        return -1
    try:
        # a '+' that was sent as it is arrives as a blank
        when = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as e:
        raise BadQuery(f"later_than: {text[:40]!r} is no ISO 8601 time") from e
    when = when.replace(tzinfo=when.tzinfo or UTC)
    if when.year < 1970:
        return -1
    whole = when.replace(microsecond=0)
    return int(whole.timestamp()) * 1_000_000 + when.microsecond
