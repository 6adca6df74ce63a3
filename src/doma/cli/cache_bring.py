"""``doma cache prestage`` and ``doma cache verify``: what takes its time, with its progress."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from doma.cli import show
from doma.cli.cache import API, Remote, paths_of, stream
from doma.core.errors import CorruptFile, NotFound, ServiceUnavailable, TooManyRequests, from_problem

_AT_ONCE = 50
"""Files of one request: half of the queue that a cache has by default."""
_AGAIN = 30


def prestage(
    remote: Remote,
    paths: Sequence[str],
    file: Path | None,
    columns: Sequence[str],
    tree: str,
    json: bool,
) -> None:
    """Bring files; exits as the first failure says when one could not be brought."""
    wanted, last = paths_of(paths, file), {}
    with _progress(json) as progress:
        task = progress.add_task("", total=None)
        for at in range(0, len(wanted), _AT_ONCE):
            for line in _bring(remote, wanted[at : at + _AT_ONCE], columns, tree):
                if "path" not in line:
                    continue
                last[line["path"]] = line
                done = sum(one["status"] in {"success", "failure"} for one in last.values())
                progress.update(
                    task,
                    completed=sum(one["offset"] for one in last.values()),
                    total=sum(one["size"] for one in last.values()) or None,
                    description=f"{done} of {len(wanted)} files",
                )
    failed = [one for one in last.values() if one["status"] == "failure"]
    brought = sum(one["size"] for one in last.values() if one["status"] == "success")
    if json:
        show.as_json({"files": list(last.values()), "failed": len(failed), "bytes": brought})
    else:
        if failed:
            rows = [(one["path"], one["error"]["detail"]) for one in failed]
            show.table("could not be brought", ("path", "why"), rows)
        print(f"{len(last) - len(failed)} of {len(wanted)} files are here, {show.size(brought)}")
    if failed:
        raise from_problem(failed[0]["error"])
    if len(last) < len(wanted):
        raise ServiceUnavailable("prestage: the answer ended early; ask again")


def verify(remote: Remote, paths: Sequence[str], file: Path | None, json: bool) -> None:
    """Check files; exits 65 when damage could not be mended."""
    wanted: list[tuple[str, int]] = []
    for path in paths_of(paths, file):
        if path.endswith("/"):
            wanted += [(one["path"], one["cached"]) for one in remote.below(path)]
        else:
            wanted.append((path, 0))
    reports: list[dict[str, Any]] = []
    with _progress(json) as progress:
        task = progress.add_task("", total=sum(size for _, size in wanted) or None)
        for path, size in wanted:
            try:
                reports.append(remote.ask("POST", f"{API}/verify", path=path))
            except NotFound:
                if not size:
                    raise  # else it went since it was listed
            progress.update(task, advance=size, description=f"{len(reports)} of {len(wanted)} files")
    damaged = [one for one in reports if one["damaged"]]
    lost = sum(one["damaged"] - one["repaired"] for one in damaged)
    if json:
        show.as_json({"files": len(reports), "damaged": damaged, "lost_pages": lost})
    else:
        if damaged:
            rows = [(one["path"], one["damaged"], one["repaired"], one["error"]) for one in damaged]
            show.table("damaged", ("path", "pages", "mended", "why not all"), rows, right=("pages", "mended"))
        print(f"{len(reports)} files checked, {len(damaged)} were damaged")
    if lost:
        raise CorruptFile(
            f"{damaged[0]['path']}: {lost} damaged pages could not be fetched again; they are missing now"
        )


def _bring(
    remote: Remote, paths: Sequence[str], columns: Sequence[str], tree: str
) -> Iterator[dict[str, Any]]:
    """The lines of one request, which is made again while the queue is full."""
    body: dict[str, Any] = {"paths": list(paths)}
    if columns:
        body |= {"columns": list(columns)} | ({"tree": tree} if tree else {})
    while True:
        try:
            yield from stream(remote, f"{API}/prestage", body)
        except TooManyRequests as e:
            time.sleep(e.retry_after or _AGAIN)
        else:
            return


def _progress(quiet: bool) -> Progress:
    console = Console(stderr=True)
    sizes = DownloadColumn(binary_units=True)
    columns = (TextColumn("{task.description}"), BarColumn(), sizes, TransferSpeedColumn())
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal)
