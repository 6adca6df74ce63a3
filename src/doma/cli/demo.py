"""``doma demo``: starts the system, runs the main job by four roads, shows the table, draws the plot."""

import json as jsonlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from doma.app.child import Child
from doma.app.home import Home
from doma.cli import show
from doma.core.errors import BadRequest, DomaError, MissingExtra


def demo(home: Path | None, events: int | None, json: Path | None, plot: Path) -> None:
    """Run the main job; exits 0 only if all roads agree with the independent computation."""
    _need_extra()
    for wanted in filter(None, (json, plot)):
        if not os.access(wanted.absolute().parent, os.W_OK):
            raise BadRequest(f"{wanted}: its folder is not there or cannot be written; choose another place")
    with _ending_in_order(), tempfile.TemporaryDirectory(prefix="doma-demo-") as scratch:
        place = Home(home or Path(scratch) / "home")
        with _running(place):
            _main_job(place, Path(scratch), events, json, plot)


def _need_extra() -> None:
    import importlib.util

    for module in ("coffea", "distributed", "hist", "mplhep", "func_adl"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(f"{module} is not installed; the demo needs: pip install 'doma-hep[facility]'")


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: what it started is stopped."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _running(place: Home) -> Iterator[None]:
    """The system in a process of its own, unless it runs in that home already."""
    if place.running():
        yield
        return
    with Child(place, log=place / "demo.log"):
        yield


def _main_job(place: Home, scratch: Path, events: int | None, json: Path | None, plot: Path) -> None:
    from doma.facility import plot as plots
    from doma.facility import roads
    from doma.facility.access import Access
    from doma.facility.dimuon import reference
    from doma.facility.sample import OTHERS, REAL, generate, sample

    access = Access.read(place.path)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("preparing", total=8, note="")

        def step(text: str) -> None:
            progress.update(task, description=text, advance=1)

        main = sample(REAL) if events is None else generate(scratch / f"generated_{events}.root", events)
        files = {f"{roads.PREFIX}/{main.name}": main} | {f"{roads.PREFIX}/{n}": sample(n) for n in OTHERS}
        step("uploading")
        roads.upload(access, files, lambda n: None)
        step("computing the reference")
        expected = reference(main)
        results, cache = roads.travel(access, next(iter(files)), scratch, step)
        agree = _agreement(results, expected)
        step("drawing")
        plots.dimuon({r.name: r.found for r in results}, plot, real=events is None)
    _report(results, cache, expected, agree, main.name, plot)
    if json:
        json.write_text(jsonlib.dumps(_as_json(results, expected, agree), indent=1) + "\n")
    if agree is not None:
        raise agree


def _agreement(results: Any, expected: Any) -> DomaError | None:
    from doma.facility.roads import check

    try:
        check(results, expected)
    except DomaError as e:
        return e
    return None


def _as_json(results: Any, expected: Any, agree: DomaError | None) -> dict[str, Any]:
    return {
        "equal": agree is None,
        "pairs": expected.pairs,
        "counts": [int(n) for n in expected.counts],
        "roads": {
            r.name: {
                "pairs": r.found.pairs,
                "events": r.events,
                "bytes_received": r.bytes_received,
                "bytes_origin": r.bytes_origin,
                "seconds": round(r.seconds, 4),
            }
            for r in results
        },
    }


def _report(results: Any, cache: Any, expected: Any, agree: DomaError | None, name: str, plot: Path) -> None:
    rows = [
        (
            r.name,
            f"{r.events:,}",
            f"{r.found.pairs:,}",
            show.size(r.bytes_received),
            show.size(r.bytes_origin),
            f"{r.seconds:.2f}",
        )
        for r in results
    ]
    header = ("road", "events", "pairs", "received", "from origin", "seconds")
    show.table(f"Dimuon mass of {name}, 60-120 GeV", header, rows, right=header[1:])
    moved = [
        (read, *(show.size(c.get(k, 0)) for k in ("hit", "prefetched", "miss", "origin")))
        for read, c in cache.items()
    ]
    head = ("read through the cache", "hits", "hits read ahead", "misses", "from origin")
    show.table("", head, moved, right=head[1:])
    if agree is None:
        inside = int(expected.counts.sum())
        print(f"all roads agree with plain uproot: {expected.pairs:,} pairs, {inside:,} in the window")
        print(f"plot: {plot}")
