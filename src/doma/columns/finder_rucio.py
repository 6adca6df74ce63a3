"""Datasets and containers of a Rucio server: ``rucio://scope:name``.

Asks what Rucio's own clients ask, without them: answers are bounded, and nothing is written to disk.

Source: rucio ``web/rest/flaskapi/v1/{auth,dids,replicas}.py``: ``GET /dids/{scope}/{name}``,
``POST /replicas/list`` (one JSON object a line: ``scope``, ``name``, ``bytes``, ``adler32``, ``pfns``).
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from doma.columns.finder import MAX_FILES, FoundFile, by_preference, nowhere, too_many
from doma.columns.finder_http import Catalogue, adler, whole
from doma.columns.model import Grant
from doma.core import config
from doma.core.did import Did
from doma.core.errors import ConfigError, DomaError, NotFound, OriginFailed
from doma.core.url import https

SCHEMES = ["root", "davs", "https", "http"]
MAX_NAME = 1000
"""Characters of scope and name."""
LIFE = 1800.0
"""Seconds for which a token that Rucio gave is used; it lives an hour."""


class RucioFinder:
    """A Rucio server.

    Args:
        section: Where it is and who asks.
        clock: Unix seconds.
    """

    word = "rucio"
    private = False

    def __init__(self, section: config.Datasets, clock: Callable[[], float] = time.time) -> None:
        self._section, self._clock = section, clock
        files = (section.rucio_ca_file, section.rucio_cert_file)
        self._server = Catalogue(section.rucio, *files)
        self._auth = Catalogue(section.rucio_auth or section.rucio, *files)
        self._token, self._until = "", 0.0

    async def find(self, name: str, grant: Grant) -> Sequence[FoundFile]:
        did = Did.parse(name)
        path = f"/dids/{quote(did.scope, safe='')}/{quote(did.name, safe='')}"
        headers = await self._headers()
        try:
            told = await self._server.json(path, headers)
        except NotFound as e:
            raise NotFound(f"{did}: Rucio knows no such dataset") from e
        except DomaError:
            self._until = 0.0  # of a refused token, too
            raise
        if not isinstance(told, dict):
            raise OriginFailed(f"{self._server.url}{path}: the catalogue's answer is not that of a DID")
        ask = {"dids": [{"scope": did.scope, "name": did.name}], "schemes": SCHEMES, "domain": None,
               "all_states": False, "resolve_archives": True, "resolve_parents": False}  # fmt: skip
        where = "/replicas/list"
        answer = await self._server.ask("POST", where, headers, json.dumps(ask).encode())
        found: list[FoundFile] = []
        async for entry in self._server.lines(answer, where):
            found.append(self._file(entry, where))
            if len(found) > MAX_FILES:
                raise too_many()
        return found

    async def close(self) -> None:
        await self._server.close()
        await self._auth.close()

    def _file(self, entry: Any, where: str) -> FoundFile:
        try:
            name, pfns = f"{entry['scope']}:{entry['name']}", entry.get("pfns") or {}
            # On tape only, a file is not readable now; where nothing else is told it may well be.
            told = [(whole(v.get("priority")), str(u)) for u, v in pfns.items() if v.get("type") != "TAPE"]
        except (TypeError, KeyError, AttributeError) as e:
            raise OriginFailed(
                f"{self._server.url}{where}: the catalogue's answer has no list of files"
            ) from e
        if not name.isprintable() or len(name) > MAX_NAME:
            raise OriginFailed(
                f"{self._server.url}{where}: a file in the catalogue's answer has no usable name"
            )
        urls = by_preference((https(url) for _, url in sorted(told)), self._section.prefer)
        size, sum_ = whole(entry.get("bytes")), adler(entry.get("adler32"))
        # A file without a readable replica fails by itself: left out, it would be missed by nobody.
        return FoundFile(name, urls or (nowhere(name),), size, 0, sum_)

    async def _headers(self) -> dict[str, str]:
        s = self._section
        account = {"X-Rucio-Account": s.rucio_account} if s.rucio_account else {}
        if s.rucio_token_file:
            try:
                text = Path(s.rucio_token_file).read_text().strip()  # noqa: ASYNC240 - a small local file
            except OSError as e:
                raise ConfigError(f"{s.rucio_token_file}: the token cannot be read ({e.strerror})") from e
            return {"X-Rucio-Auth-Token": text, **account}
        if not self._token or self._clock() > self._until:
            way = "userpass" if s.rucio_user else "x509"
            secret = s.rucio_password.get_secret_value()
            who = {"X-Rucio-Username": s.rucio_user, "X-Rucio-Password": secret} if s.rucio_user else {}
            headers = {"Accept": "*/*", **who, **account}  # 406 for JSON: the answer has no body
            async with await self._auth.ask("GET", f"/auth/{way}", headers) as answer:
                self._token = answer.get("x-rucio-auth-token")
            if not self._token:
                raise OriginFailed(f"{self._auth.url}/auth/{way}: Rucio gave no token; see datasets.rucio_*")
            self._until = self._clock() + LIFE
        return {"X-Rucio-Auth-Token": self._token, **account}
