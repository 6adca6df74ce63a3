"""``doma dataset``: the catalogue of a running system, and what its requests looked up."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from doma.cli import show
from doma.cli.columns import Place
from doma.cli.dataset_files import Files

ROOT = "/api/v1/datasets"


def put(place: Place, datasets: Mapping[str, Files], shared: bool | None, replace: bool, json: bool) -> None:
    """Make datasets, or add files to them."""
    made = []
    for name, files in datasets.items():
        body: dict[str, Any] = {"files": files, "replace": replace}
        made.append(place.call("PUT", _of(name), body if shared is None else body | {"shared": shared}))
    if json:
        show.as_json(made)
    else:
        _entries(made)


def list_all(place: Place, json: bool) -> None:
    """One's own datasets and the shared ones."""
    found = place.call("GET", ROOT)["datasets"]
    if json:
        show.as_json(found)
    else:
        _entries(found)


def list_looked_up(place: Place, stale: bool, json: bool) -> None:
    """What one's requests looked up."""
    found = place.call("GET", "/servicex/datasets" + ("?show-deleted=true" if stale else ""))["datasets"]
    if json:
        show.as_json(found)
        return
    rows = [
        (d["id"], d["name"], "stale" if d["is_stale"] else d["lookup_status"], d["n_files"],
         show.size(d["size"]), d["last_updated"][:19])
        for d in found
    ]  # fmt: skip
    show.table(
        "Looked up", ("id", "name", "state", "files", "size", "updated"), rows, right=("files", "size")
    )


def show_one(place: Place, name: str, json: bool) -> None:
    """The files of a dataset of the catalogue, or of one that was looked up."""
    looked_up = name.isdigit()
    found = place.call("GET", f"/servicex/datasets/{name}" if looked_up else _of(name))
    if json:
        show.as_json(found)
        return
    if looked_up:
        rows = [(f["paths"].replace(",", "\n"), f["file_events"], f["file_size"]) for f in found["files"]]
    else:
        rows = [("\n".join(f["replicas"]), f["events"], f["bytes"]) for f in found["files"]]
    shown = [(places, events or "", show.size(size) if size else "") for places, events, size in rows]
    show.table(found["name"], ("replicas", "events", "size"), shown, right=("events", "size"))


def remove(place: Place, name: str) -> None:
    """Forget a dataset of the catalogue."""
    place.call("DELETE", _of(name))


def mark_stale(place: Place, number: int) -> None:
    """Have the next request look it up anew."""
    place.call("DELETE", f"/servicex/datasets/{number}")


def _of(name: str) -> str:
    return f"{ROOT}/{quote(name.removeprefix('doma://'), safe='/')}"


def _entries(found: list[dict[str, Any]]) -> None:
    rows = [
        (f"doma://{e['name']}", e["files"], e["events"] or "", show.size(e["bytes"]) if e["bytes"] else "",
         ("shared" if e["shared"] else "private") if e["mine"] else "somebody's")
        for e in found
    ]  # fmt: skip
    show.table(
        "Datasets", ("name", "files", "events", "size", "for"), rows, right=("files", "events", "size")
    )
