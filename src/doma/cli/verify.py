"""``doma verify``: read every file of an endpoint again and compare with the stored checksums."""

import asyncio
from pathlib import Path

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from doma.app.home import Home, default_home
from doma.app.settings import load
from doma.cli import show
from doma.core.checksum import COMPUTABLE
from doma.core.errors import BadRequest, CorruptFile, NotFound
from doma.core.paths import checked
from doma.store.locate import open_store
from doma.store.protocol import Store
from doma.store.verify import Verified
from doma.store.verify import verify as verified


def verify(
    home: Path | None, config: Path | None, endpoint: str, path: str, algorithm: str, json: bool
) -> None:
    """Check a store beside the system that serves it; exits 65 when a file is not what it was."""
    place = Home(home or default_home())
    if algorithm not in COMPUTABLE:
        raise BadRequest(f"--algorithm {algorithm!r}: must be one of {', '.join(COMPUTABLE)}")
    store = open_store(_address(place, config, endpoint))
    files, size, first, bad = asyncio.run(_all(store, checked(path), algorithm, json))
    if json:
        told = [
            {"path": one.stat.path, "stored": one.stored, "found": one.found, "problem": one.problem}
            for one in bad
        ]
        show.as_json({"files": files, "bytes": size, "first_checksum": first, "bad": told})
    else:
        rows = [(one.stat.path, one.stored, one.found or one.problem) for one in bad]
        if rows:
            show.table("damaged files", ("path", f"stored {algorithm}", "found"), rows)
        print(f"{files} files, {show.size(size)} read; {first} had no {algorithm} and have one now")
    if bad:
        raise CorruptFile(
            f"/{endpoint}{bad[0].stat.path}: {len(bad)} of {files} files are not what was stored;"
            " bring them back from another copy"
        )


def _address(place: Home, config: Path | None, endpoint: str) -> str:
    own = place / "doma.toml"
    settings = load(config or (own if own.exists() else None))
    default = {} if settings.endpoints else {"site": f"file://{place / 'site'}"}
    known = default | {name: section.store for name, section in settings.endpoints.items()}
    if endpoint not in known:
        raise NotFound(f"endpoint {endpoint!r}: not configured; endpoints: {', '.join(known) or 'none'}")
    if known[endpoint].startswith("file:") and not Path(known[endpoint].removeprefix("file://")).is_dir():
        raise NotFound(f"endpoint {endpoint!r}: there is no folder {known[endpoint]} yet")
    return known[endpoint]


async def _all(store: Store, path: str, algorithm: str, json: bool) -> tuple[int, int, int, list[Verified]]:
    """Files, bytes, how many had no checksum, and the bad ones."""
    files = size = first = 0
    bad: list[Verified] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, disable=json or not console.is_terminal) as progress:
            task = progress.add_task("reading", total=None)
            async for one in verified(store, path, algorithm):
                files, size, first = files + 1, size + one.stat.size, first + (not one.stored)
                if not one.good:
                    bad.append(one)
                shown = f"{files} files, {len(bad)} damaged"
                progress.update(task, completed=size, description=shown)
    finally:
        await store.close()
    return files, size, first, bad
