"""Numbers, times and facts as people read them on the status page."""

import json
import time
from collections.abc import Mapping
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(value: float) -> str:
    """Bytes in binary units, three digits.

    >>> size(0), size(1023), size(352_599), size(20 << 30), size(5 << 50)
    ('0 B', '1023 B', '344 KiB', '20.0 GiB', '5.00 PiB')
    """
    power = 0
    while value >= 1023.5 and power < len(_UNITS) - 1:
        value, power = value / 1024, power + 1
    if not power:
        return f"{value:.0f} B"
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_UNITS[power]}"


def count(value: float) -> str:
    """A number with separators; one decimal as long as that says something.

    >>> count(1234567), count(0.25), count(12.0)
    ('1,234,567', '0.2', '12')
    """
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"


def instant(seconds: float) -> str:
    """Unix seconds as date and time UTC.

    >>> instant(0)
    '1970-01-01 00:00:00'
    """
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def duration(seconds: float) -> str:
    """A time in its two largest units, in full minutes from the first one on.

    >>> duration(0.3), duration(59), duration(61), duration(7_260), duration(200_000)
    ('0.3 s', '59 s', '1 min', '2 h 1 min', '2 d 7 h')
    """
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def facts(data: Mapping[str, Any], longest: int = 160) -> str:
    """The data of an event on one line; the endpoint stands in its subject already.

    >>> facts({"endpoint": "site", "size": 2048, "adler32": "03da0195", "renamed": True})
    'size 2.00 KiB, adler32 03da0195, renamed true'
    """
    words = []
    for name, value in data.items():
        if name == "endpoint":
            continue
        number = name in {"size", "bytes"} and isinstance(value, int)
        words.append(
            f"{name} {size(value) if number else value if isinstance(value, str) else json.dumps(value)}"
        )
    text = ", ".join(words)
    return text if len(text) <= longest else text[: longest - 1] + "…"
