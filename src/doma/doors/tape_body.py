"""Bodies of the Tape REST API: what a client may send, in bounded memory and without surprises.

Before a large body is parsed its commas and brackets are counted: they bound how many values it can have, and
so the memory that they take.

Source: WLCG Tape REST API v1; rules W81-W92 of the storage contract; ISO 8601 §5.5.2 (durations).
"""

import json
import re
from functools import lru_cache
from typing import Any

from doma.core.config import Staging
from doma.core.errors import BadRequest, LimitExceeded
from doma.store.tape_stages import Wanted

MAX_BODY = 64 << 20
"""Bytes of the largest body."""
VALUES = 20
"""JSON values that one file of a request may take."""
MAX_PATH = 4096
MAX_ACTIVITY = 64

_DURATION = re.compile(
    r"P(?=.)(?:(\d{1,9})Y)?(?:(\d{1,9})M)?(?:(\d{1,9})W)?(?:(\d{1,9})D)?"
    r"(?:T(?=.)(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9}(?:[.,]\d{1,9})?)S)?)?",
    re.ASCII,
)
_SECONDS = (365 * 86400.0, 30 * 86400.0, 7 * 86400.0, 86400.0, 3600.0, 60.0, 1.0)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SLASHES = re.compile("//+")


def stage(data: bytes, sitename: str, options: Staging) -> list[Wanted]:
    """The files of a stage request, each path once.

    Args:
        data: The body.
        sitename: Our name: metadata for other sites is not ours.
        options: Limits and the usual life of a pin.

    Raises:
        BadRequest: not what the API says. LimitExceeded: too many files.
    """
    files: dict[str, Wanted] = {}
    for i, file in enumerate(_items(data, "files", options.files)):
        if not isinstance(file, dict):
            raise BadRequest(f"files[{i}]: must be an object with a path")
        path = _path(file.get("path"), f"files[{i}].path")
        lifetime = options.pin
        if (said := file.get("diskLifetime")) is not None:
            lifetime = min(duration(said, f"files[{i}].diskLifetime"), options.longest_pin)
        files.setdefault(path, Wanted(path, lifetime, _activity(file, sitename)))
    return list(files.values())


def paths(data: bytes, most: int, *, cut: bool = False) -> list[str]:
    """The paths of any other request, each once, as sent but for double slashes.

    Args:
        data: The body.
        most: Paths that are taken.
        cut: Leave out what is too many instead of refusing all.

    Raises:
        BadRequest, LimitExceeded: as :func:`stage`.
    """
    items = _items(data, "paths", most, cut=cut)
    return list(dict.fromkeys(_path(path, f"paths[{i}]") for i, path in enumerate(items)))


def duration(text: object, where: str) -> float:
    """Seconds of an ISO 8601 duration; a year has 365 days, a month 30.

    >>> duration("P1DT2H", "x"), duration("PT0.5S", "x"), duration("P2W", "x")
    (93600.0, 0.5, 1209600.0)
    """
    seconds = _seconds(text) if isinstance(text, str) and len(text) < 100 else None
    if seconds is None:
        raise BadRequest(f"{where}: must be an ISO 8601 duration, as in P1DT12H")
    return seconds


@lru_cache(maxsize=64)
def _seconds(text: str) -> float | None:
    # Remembered, since the files of one request mostly say the same.
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    parts = zip(found.groups(), _SECONDS, strict=True)
    return sum(float(number.replace(",", ".")) * unit for number, unit in parts if number is not None)


def _items(data: bytes, name: str, most: int, *, cut: bool = False) -> list[Any]:
    # What is counted inside of texts makes the bound only tighter than need be, by little.
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > VALUES * most + 1000:
        raise LimitExceeded(f"request: at most {most} {name} are taken at once; send more requests")
    try:
        body = json.loads(data, parse_constant=_refuse, parse_int=float)
    except (ValueError, RecursionError) as e:
        why = "it is nested too deep" if isinstance(e, RecursionError) else str(e)[:100]
        raise BadRequest(f"request: this is no JSON ({why})") from e
    items = body.get(name) if isinstance(body, dict) else None
    if not isinstance(items, list) or not items:
        raise BadRequest(f"{name}: must be a list with at least one entry")
    if len(items) > most and not cut:
        raise LimitExceeded(f"{name}: at most {most} are taken at once, these are {len(items)}; split them")
    return items[:most]


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _path(path: object, where: str) -> str:
    if not isinstance(path, str) or not path.startswith("/"):
        raise BadRequest(f"{where}: must be an absolute path, as in /site/a/file")
    if len(path) > MAX_PATH or _CONTROL.search(path):
        raise BadRequest(f"{where}: may have at most {MAX_PATH} characters, and no control characters")
    return _SLASHES.sub("/", path)


def _activity(file: dict[str, Any], sitename: str) -> str:
    """The activity that a client names for this site; whatever else it says is for others."""
    everything = file.get("targetedMetadata")
    ours = everything.get(sitename) if isinstance(everything, dict) else None
    activity = ours.get("activity") if isinstance(ours, dict) else None
    if not isinstance(activity, str) or _CONTROL.search(activity):
        return ""
    return activity[:MAX_ACTIVITY]
