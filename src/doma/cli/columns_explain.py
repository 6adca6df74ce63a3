"""``doma columns explain``: what a query means, without running it."""

import json as json_text
from contextlib import ExitStack
from pathlib import Path

from doma.app.home import default_home
from doma.cli import show
from doma.cli.columns import selection
from doma.facility.access import Access


def explain(query: str, file: str, codegen: str, home: Path | None, json: bool) -> None:
    """Print it; a file of a running home is read with its token, any other as anybody may."""
    from doma.columns.explain import explain as explained
    from doma.columns.remote import open_bytes

    chosen, text = selection(query, codegen)
    with ExitStack() as stack:
        data = None
        if file:
            url = file if "://" in file else Path(file).absolute().as_uri()
            token, ca_file, origin = _access(home, url)
            data = open_bytes(url, token, ca_file, allow=("file://", origin), lazy=True)
            stack.callback(data.close)
        found = explained(chosen, text, data)
    if json:
        show.as_json(found.as_json())
    else:
        print(found.text())


def _access(home: Path | None, url: str) -> tuple[str, str, str]:
    """Token, CA file and origin of the running home, if the URL is one of its own; else nothing."""
    place = home or default_home()
    if not (place / "run.json").is_file():
        return "", "", ""
    access = Access.read(place)
    run = json_text.loads((place / "run.json").read_text())
    for origin in (access.https, str(run["url"])):
        if url.startswith(origin + "/"):
            return access.token(), access.ca_file, origin
    return "", "", ""
