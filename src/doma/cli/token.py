"""``doma token``: one token of the embedded issuer, signed with the home's own keys."""

import re
from collections.abc import Sequence
from pathlib import Path

from doma.app.home import Home, default_home
from doma.app.identity import issuer_of
from doma.cli import show
from doma.core.errors import BadRequest

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def token(
    home: Path | None,
    scope: str,
    audience: Sequence[str],
    group: Sequence[str],
    lifetime: str,
    subject: str,
    json: bool,
) -> None:
    """Print a token; whoever can read the home's keys may make one, and nobody else."""
    issuer = issuer_of(Home(home or default_home()))
    seconds = duration(lifetime)
    signed = issuer.issue(
        subject=subject or "admin",
        scopes=scope,
        audience=tuple(audience),
        groups=tuple(group),
        lifetime=seconds,
    )
    if json:
        show.as_json({"access_token": signed, "expires_in": seconds, "scope": scope})
    else:
        print(signed)


def duration(text: str) -> float:
    """Seconds of a duration such as ``90``, ``30s``, ``10m``, ``1h``, ``2d``.

    Raises:
        BadRequest: anything else.

    >>> duration("10m"), duration("90")
    (600.0, 90.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if not match or not 0 < float(match[1]) * UNITS[match[2]] <= 400 * 86400:
        raise BadRequest(f"{text!r} is not a duration; write for example 30s, 10m, 1h or 2d (at most 400d)")
    return float(match[1]) * UNITS[match[2]]
