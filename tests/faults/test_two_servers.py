"""Two servers with homes, ports and issuers of their own, one PostgreSQL and one folder of files."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import System, doma

pytestmark = [pytest.mark.fault, pytest.mark.engine]

CONFIG = """
[database]
url = "{url}"
[auth]
audiences = ["grid"]
{trusted}
[endpoints.site]
store = "file://{place}/site"
[endpoints.tape]
store = "tape+file://{place}/tape"
fsync = false
tape = {{ buffer = 0, drives = 1, retry = 0.2 }}
"""
TRUSTED = """
embedded = false
issuers = [{{ issuer = "{issuer}", vo = "doma", profile = "any", ca_file = "{ca}" }}]
"""
ROLES = "--role", "issuer", "--role", "storage", "--role", "web"
RIGHTS = "storage.read:/ storage.modify:/ storage.stage:/"


class Pair:
    """The two; the second trusts the first one's issuer and has none of its own."""

    def __init__(self, place: Path, url: str) -> None:
        self.place, self.url = place, url
        self.a = self._system("a", "")
        self.a.up()
        run = self.a.run
        self.b = self._system("b", TRUSTED.format(issuer=run["services"]["issuer"], ca=run["ca_file"]))
        self.b.up()

    def _system(self, name: str, trusted: str) -> System:
        config = self.place / f"{name}.toml"
        config.write_text(CONFIG.format(url=self.url, place=self.place, trusted=trusted))
        return System(self.place / name, "--config", config, *ROLES)

    def token(self, **claims: Any) -> str:
        """One for both, of the first one's issuer."""
        return self.a.token(RIGHTS, audience=("grid",), lifetime=3600, **claims)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> Iterator[Pair]:
    import psycopg

    name = f"two_{uuid4().hex}"
    with psycopg.connect(f"host={postgres_server} user=doma dbname=postgres", autocommit=True) as tables:
        tables.execute(f"CREATE DATABASE {name}".encode())
    url = f"postgresql+psycopg://doma@/{name}?host={postgres_server}"
    both = Pair(tmp_path_factory.mktemp("two"), url)
    yield both
    for system in (both.a, both.b):
        assert system.down() == 0, system.log
        assert "Traceback" not in system.log


def until(true: Callable[[], Any]) -> Any:
    """What a question gives once that is true."""
    end = time.monotonic() + 30
    while not (found := true()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.1)
    return found


def test_what_one_writes_copies_or_deletes_the_other_has_at_once(pair: Pair) -> None:
    a, b, token = pair.a, pair.b, pair.token()
    for number, (one, other) in enumerate([(a, b), (b, a)] * 5):
        data = b"%d" % number * 5000
        put = one.ask("PUT", "/site/d/f", token, content=data)
        got = other.ask("GET", "/site/d/f", token)
        assert (got.content, got.headers["etag"]) == (data, put.headers["etag"])
        to = {"Destination": other.run["https"] + "/site/d/copy"}
        assert other.ask("COPY", "/site/d/f", token, to).status_code in {201, 204}
        assert one.ask("GET", "/site/d/copy", token).content == data
        assert other.ask("DELETE", "/site/d/copy", token).status_code == 204
        assert one.ask("GET", "/site/d/copy", token).status_code == 404


def test_of_many_writers_with_one_condition_one_wins(pair: Pair) -> None:
    token = pair.token()
    with ThreadPoolExecutor(8) as pool:
        for conditions in ("If-None-Match", "If-Match") * 5:
            held = {"If-None-Match": "*"}
            if conditions == "If-Match":
                held = {"If-Match": pair.a.ask("HEAD", "/site/fenced", token).headers["etag"]}
            else:
                pair.a.ask("DELETE", "/site/fenced", token)
            gate = threading.Barrier(8)

            def write(number: int, gate: Any = gate, held: Any = held) -> int:
                import httpx

                system = (pair.a, pair.b)[number % 2]
                sent = {"Authorization": f"Bearer {token}", **held}
                with httpx.Client(verify=system.access.tls(), timeout=30) as http:
                    gate.wait(30)
                    place = system.run["https"] + "/site/fenced"
                    return http.put(place, headers=sent, content=b"%d" % number * 100_000).status_code

            codes = list(pool.map(write, range(8)))
            winner = [number for number, code in enumerate(codes) if code in {201, 204}]
            assert len(winner) == 1, codes
            assert [code for code in codes if code not in {201, 204}] == [412] * 7
            for system in (pair.a, pair.b):
                assert system.ask("GET", "/site/fenced", token).content == b"%d" % winner[0] * 100_000


def test_a_staged_file_comes_once_whichever_server_is_asked(pair: Pair) -> None:
    a, b, token = pair.a, pair.b, pair.token()
    paths = [f"/tape/{number}" for number in range(20)]
    for number, path in enumerate(paths):
        (a, b)[number % 2].ask("PUT", path, token, content=path.encode())

    def where(system: System) -> list[str]:
        told = system.ask("POST", "/api/v1/archiveinfo", token, json={"paths": paths}).json()
        return [one["locality"] for one in told]

    until(lambda: where(a) == where(b) == ["TAPE"] * 20)
    files = {"files": [{"path": path} for path in paths]}
    ident = b.ask("POST", "/api/v1/stage", token, json=files).json()["requestId"]
    again = a.ask("POST", "/api/v1/stage", token, json=files).json()["requestId"]
    for system, name in ((a, ident), (b, again)):
        place = f"/api/v1/stage/{name}"

        def over(system: System = system, place: str = place) -> Any:
            said = system.ask("GET", place, token).json()
            return said if said.get("completedAt") else None

        told = until(over)
        assert {file["state"] for file in told["files"]} == {"COMPLETED"}
    for path in paths:
        assert [s.ask("GET", path, token).content for s in (a, b)] == [path.encode()] * 2


def test_each_servers_stream_tells_everything_once(pair: Pair) -> None:
    token = pair.token(subject="nell")
    heard: list[list[str]] = [[], []]
    begun, done = threading.Barrier(3), [threading.Event(), threading.Event()]

    def listen(number: int, system: System) -> None:
        import httpx

        sent = {"Authorization": f"Bearer {token}"}
        place = system.run["https"] + "/events"
        with (
            httpx.Client(verify=system.access.tls(), timeout=30) as http,
            http.stream("GET", place, headers=sent) as answer,
        ):
            lines = answer.iter_lines()
            assert next(lines).startswith("retry: ")
            begun.wait(30)
            for line in lines:
                if line.startswith("data: "):
                    heard[number].append(json.loads(line[6:])["subject"])
                    if heard[number][-1] == "/site/told/last":
                        break
        done[number].set()

    threads = [threading.Thread(target=listen, args=(i, s)) for i, s in enumerate((pair.a, pair.b))]
    for thread in threads:
        thread.start()
    begun.wait(30)
    names = [f"/site/told/{number}" for number in range(30)]
    for number, name in enumerate(names):
        (pair.a, pair.b)[number % 2].ask("PUT", name, token, content=b"x")
    until(lambda: all(set(names) <= set(some) for some in heard))
    pair.a.ask("PUT", "/site/told/last", token, content=b"x")
    for thread in threads:
        thread.join(30)
    assert all(one.is_set() for one in done)
    for some in heard:
        assert sorted(some) == sorted([*names, "/site/told/last"])


def test_a_token_revoked_at_one_is_void_at_the_other(pair: Pair) -> None:
    kept = pair.token()
    said = doma("client", "add", "service", "--home", pair.a.home.path, "--scope", "storage.modify:/")
    who = ("service", said.out.strip())
    form = {"grant_type": "client_credentials", "audience": "grid", "scope": "storage.modify:/"}
    token = pair.a.ask("POST", "/doma/token", None, auth=who, data=form).json()["access_token"]
    for system in (pair.a, pair.b):
        assert system.ask("PUT", "/site/f", token, content=b"x").status_code in {201, 204}
    assert pair.a.ask("POST", "/doma/revoke", None, auth=who, data={"token": token}).status_code == 200
    assert pair.a.ask("PUT", "/site/f", token, content=b"y").status_code == 401
    until(lambda: pair.b.ask("PUT", "/site/f", token, content=b"x").status_code == 401)
    assert pair.b.ask("GET", "/site/f", kept).content == b"x"


def test_one_is_killed_and_the_other_goes_on(pair: Pair) -> None:
    token = pair.token()
    for one, other in ((pair.a, pair.b), (pair.b, pair.a)):
        one.crash()
        other.ask("PUT", "/tape/late", token, content=b"late")
        info = {"paths": ["/tape/late"]}

        def there(system: System = other, info: Any = info) -> bool:
            found = system.ask("POST", "/api/v1/archiveinfo", token, json=info).json()[0]["locality"]
            return bool(found == "TAPE")

        until(there)  # its drives work now, whoever had them before
        one.up()
        assert one.ask("PUT", "/tape/late", token, content=b"again").status_code == 204
        until(there)
