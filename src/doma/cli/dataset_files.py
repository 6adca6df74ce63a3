"""Lists of files as people keep them: lines, CSV, JSON."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from doma.core.errors import BadRequest

NUMBERS = ("bytes", "events")
FIELDS = ("replicas", "name", *NUMBERS, "adler32")
SPELLINGS = {
    "url": "replicas", "paths": "replicas", "size": "bytes", "file_size": "bytes", "file_events": "events",
}  # fmt: skip

Files = list[dict[str, Any]]


def read(path: Path, name: str) -> dict[str, Files]:
    """Datasets by name, their files as the service takes them.

    Args:
        path: ``.json``, ``.csv``, or lines of URLs; URLs on one line, or ``a,b``, are replicas.
        name: Of the dataset; empty: what the JSON says.

    Raises:
        BadRequest: it cannot be read, or no name is given.
    """
    try:
        text = path.read_text()
        if path.suffix == ".json":
            found = _json(json.loads(text), name)
        else:
            found = {name: _csv(text) if path.suffix == ".csv" else _lines(text)}
    except OSError as e:
        raise BadRequest(f"{path}: cannot be read: {e}") from e
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as e:
        raise BadRequest(f"{path}: not a list of files: {e}") from e
    if "" in found:
        raise BadRequest(f"{path}: give the dataset a name with --name")
    return found


def _lines(text: str) -> Files:
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return [{"replicas": line.replace(",", " ").split()} for line in lines]


def _csv(text: str) -> Files:
    """With a head: ``url`` (or ``replicas``), ``name``, ``bytes``, ``events``, ``adler32``."""
    return [_file(row) for row in csv.DictReader(io.StringIO(text))]


def _json(value: Any, name: str) -> dict[str, Files]:
    """A list of URLs or objects, ``{"files": …}``, or several of these by name, as analyses keep them."""
    if isinstance(value, list):
        return {name: [_file(f) for f in value]}
    if "files" not in value:
        return {key: _json(value[key], key)[key] for key in ([name] if name else value)}
    # of a dict the keys are the URLs and the values the names of trees
    return {name or str(value.get("name", "")): [_file(f) for f in value["files"]]}


def _file(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"replicas": [value]}
    told = {SPELLINGS.get(k, k): v for k, v in value.items() if v is not None and v != ""}
    places = told["replicas"]
    told["replicas"] = places.replace(",", " ").split() if isinstance(places, str) else list(places)
    for key in NUMBERS:
        if key in told:
            told[key] = int(told[key])
    return {key: told[key] for key in FIELDS if key in told}
