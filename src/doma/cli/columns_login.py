"""``doma columns login``: the configuration file of ServiceX's own client."""

import json as json_text
import re
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from doma.app.home import default_home
from doma.auth.files import write_private
from doma.cli import show
from doma.cli.columns import Place, read
from doma.cli.token import duration

_TOKEN = re.compile(r"^[ -]*token: *['\"]?([^\s'\"]+)", re.MULTILINE)


def login(place: Place, write: Path | None, subject: str, scope: str, lifetime: str, json: bool) -> None:
    """Get a token that lasts and write it down as the client wants it."""
    wanted = {"subject": subject, "scope": scope, "lifetime": duration(lifetime)}
    found = place.call("POST", "/token/servicex", wanted)
    address = place.reach()[0]
    endpoint = {"name": "doma", "endpoint": address if place.url else _simple(place, address)}
    lines = [f"{name}: {value}" for name, value in (endpoint | {"token": found["refresh_token"]}).items()]
    text = "\n    ".join(["api_endpoints:\n  - " + lines[0], *lines[1:]]) + "\ndefault-endpoint: doma\n"
    if write is not None:
        write_private(write.expanduser(), text.encode())
    if json:
        show.as_json({**endpoint, **found, "file": write and str(write)})
    elif write is not None:
        print(write)
    else:
        print(text, end="")


def logout(place: Place, file: Path, json: bool) -> None:
    """Void every token of a file that is the service's."""
    tokens = _TOKEN.findall(read(file.expanduser()))
    for token in tokens:
        place.call("POST", "/token/revoke", token=token)
    if json:
        show.as_json({"revoked": len(tokens)})
    else:
        print(f"{len(tokens)} tokens are void")


def _simple(place: Place, address: str) -> str:
    """On this machine the address without TLS: the client need not be told of our CA."""
    run = json_text.loads(((place.home or default_home()) / "run.json").read_text())
    try:
        near = ip_address(urlsplit(run["url"]).hostname or "").is_loopback
    except ValueError:
        near = urlsplit(run["url"]).hostname == "localhost"
    return str(run["url"]) if near else address
