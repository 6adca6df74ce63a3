"""Every route of a whole system is on one of these lists, and answers as its list says."""

import asyncio
from contextlib import AsyncExitStack

from doma.app.home import Home
from doma.app.opened import open_site
from doma.app.services import Services
from doma.app.settings import ROLES
from doma.bus.local import Bus
from doma.core.config import Config


def routes(tmp_path, monkeypatch):
    from doma.app import services as module

    made = []
    plain = module.web.app
    monkeypatch.setattr(module.web, "app", lambda *a, **k: made.append(plain(*a, **k)) or made[-1])
    home = Home(tmp_path / "home")

    async def build():
        async with AsyncExitStack() as stack:
            home.acquire()
            try:
                config = Config(listen={"address": "127.0.0.1:9443"})
                opened = await open_site(home, config, frozenset(ROLES), None, stack)
                services = Services(home, config, frozenset(ROLES), opened, Bus())
                services.build()
                async with services._stack:
                    pass
            finally:
                home.release()

    asyncio.run(build())
    return {pair for route in made[0].routes for pair in below(route)}


def below(route, prefix=""):
    if (inner := getattr(route, "routes", None)) is not None:
        for one in inner:
            yield from below(one, prefix + getattr(route, "path", ""))
    elif getattr(route, "original_router", None) is not None:
        for one in route.original_router.routes:
            yield from below(one, prefix)
    else:
        for method in getattr(route, "methods", None) or ["?"]:
            if method != "HEAD":
                yield method, prefix + route.path


def _words(text):
    return {tuple(line.split(maxsplit=1)) for line in text.split("\n") if line.strip()}


OPEN = _words("""
GET /.well-known/oauth-authorization-server
GET /.well-known/oauth-authorization-server/doma
GET /.well-known/wlcg-tape-rest-api
GET /doma/.well-known/openid-configuration
GET /doma/jwks
GET /health
""")
"""Public facts."""

OWN_PROOF = _words("""
GET /doma/authorize
POST /doma/authorize
GET /doma/device
POST /doma/device
POST /doma/devicecode
POST /doma/introspect
POST /doma/revoke
POST /doma/token
GET /doma/userinfo
POST /doma/userinfo
POST /token
""")
"""OAuth: the client or the user proves who they are in the form, in OAuth's own words."""

OPERATOR = _words("""
GET /
GET /events/page
GET /metrics
GET /requests
GET /requests/live
GET /requests/{id_}
GET /requests/{id_}/live
POST /requests/{id_}/cancel
GET /transformation-request/{id_}
GET /transformation-request/{id_}/results
""")
"""Pages: also without a token for who runs the system, on its machine."""

CLOSED = _words("""
POST /api/v1/archiveinfo
GET /api/v1/cache/holdings
POST /api/v1/cache/holdings
GET /api/v1/cache/objects
GET /api/v1/cache/pins
PUT /api/v1/cache/pins/{path:path}
DELETE /api/v1/cache/pins/{path:path}
POST /api/v1/cache/prestage
POST /api/v1/cache/purge
POST /api/v1/cache/purge_first
GET /api/v1/cache/scrub
GET /api/v1/cache/stats
POST /api/v1/cache/verify
GET /api/v1/datasets
GET /api/v1/datasets/{name:path}
PUT /api/v1/datasets/{name:path}
DELETE /api/v1/datasets/{name:path}
POST /api/v1/release/{ident}
POST /api/v1/s3/keys
POST /api/v1/stage
GET /api/v1/stage/{ident}
DELETE /api/v1/stage/{ident}
POST /api/v1/stage/{ident}/cancel
GET /api/v1/stage/{ident}/events
GET /events
DELETE /pelican/api/v1.0/evict
GET /pelican/api/v1.0/evict
POST /pelican/api/v1.0/evict
GET /pelican/api/v1.0/prestage
GET /servicex
GET /servicex/datasets
GET /servicex/datasets/{id_}
DELETE /servicex/datasets/{id_}
POST /servicex/transformation
GET /servicex/transformation
POST /servicex/transformation/cancel-all
POST /servicex/transformation/file-urls
GET /servicex/transformation/{id_}
DELETE /servicex/transformation/{id_}
GET /servicex/transformation/{id_}/cancel
POST /servicex/transformation/{id_}/cancel
GET /servicex/transformation/{id_}/events
GET /servicex/transformation/{id_}/results
GET /servicex/transformation/{id_}/status
POST /token/refresh
POST /token/revoke
POST /token/servicex
""")
"""Nothing without a token."""

BODIES = {
    "/api/v1/s3/keys": {"endpoint": "site"},
    "/api/v1/archiveinfo": {"paths": ["/site/x"]},
    "/api/v1/stage": {"files": [{"path": "/site/x"}]},
    "/servicex/transformation/file-urls": {"request_id": "x", "file_list": []},
}
AWAY = {"X-Forwarded-For": "192.0.2.1", "Accept": "application/json"}
"""Not the user who runs the system."""


def ask(system, method, path, token, id_="0"):
    for name in ("{id_}", "{ident}", "{name:path}", "{path:path}"):
        path = path.replace(name, id_)
    body = {"json": BODIES.get(path, {})} if method in {"POST", "PUT"} else {}
    return system.ask(method, path, token, AWAY, **body)


def test_every_route_is_on_a_list(tmp_path, monkeypatch):
    assert routes(tmp_path, monkeypatch) == OPEN | OWN_PROOF | OPERATOR | CLOSED


def test_nothing_but_what_is_open_answers_without_a_token(shared):
    told = {(m, p): ask(shared, m, p, None).status_code for m, p in OPERATOR | CLOSED}
    assert {pair: status for pair, status in told.items() if status != 401} == {}
    told = {(m, p): ask(shared, m, p, None).status_code for m, p in OWN_PROOF}
    assert {pair: status for pair, status in told.items() if not 300 <= status < 500} == {
        ("GET", "/doma/device"): 200  # a form to sign in with
    }
    assert all(ask(shared, m, p, None).status_code in {200, 404} for m, p in OPEN)


def test_nobodys_body_is_read_before_it_is_known_who_sends_it(shared):
    """Else anybody could have any length of it held in memory: what is no JSON shows who reads first."""
    told = {
        path: shared.ask(method, path.replace("{", "").replace("}", ""), None, AWAY, content=b"{").status_code
        for method, path in CLOSED
        if method in {"POST", "PUT"}
    }
    assert {path: status for path, status in told.items() if status != 401} == {}


def test_a_path_with_control_characters_is_no_routes_path(shared):
    """A pattern's ``$`` matches before a newline too: ``/health%0a`` was ``/health``."""
    pairs = OPEN | OWN_PROOF | OPERATOR | CLOSED
    pairs |= {(m, f"/{name}/x") for m in ("GET", "PUT", "PROPFIND") for name in ("site", "cache", "data")}
    told = {}
    for method, path in pairs:
        half = len(path) // 2 if "{" not in path[: len(path) // 2] else path.index("{")
        for code in ("%0a", "%0d", "%00", "%7f"):
            for spelled in (path + code, path[:half] + code + path[half:]):
                answer = ask(shared, method, spelled, None if (method, path) in OPEN else "")
                told[method, spelled] = answer.status_code, answer.headers["x-error-code"]
    assert {place: status for place, status in told.items() if status != (400, "bad-path")} == {}


MINE = _words("""
GET /events
GET /requests
GET /requests/live
GET /servicex
GET /servicex/datasets
GET /servicex/transformation
GET /api/v1/cache/pins
GET /api/v1/cache/stats
GET /api/v1/datasets
PUT /api/v1/datasets/{name:path}
DELETE /api/v1/datasets/{name:path}
POST /servicex/transformation/cancel-all
POST /token/refresh
POST /token/revoke
""")
"""What anybody with a token may do with their own, and numbers; ``events`` and ``live`` never end."""


def test_a_token_without_rights_opens_nothing(shared):
    token = shared.token("openid", subject="mallory")
    asked = (OPERATOR | CLOSED) - MINE - {("POST", "/api/v1/archiveinfo")}
    (file,) = ask(shared, "POST", "/api/v1/archiveinfo", token).json()
    assert "the token does not allow" in file["error"]
    assert set(file) == {"path", "error"}, "each file is refused by itself"
    told = {(m, p): ask(shared, m, p, token).status_code for m, p in asked}
    assert {pair: status for pair, status in told.items() if status not in {400, 401, 403, 404, 405}} == {}


def test_a_request_is_nobodys_but_its_owners(shared):
    body = {"file-list": [], "selection": "", "codegen": "uproot", "result-format": "parquet"}
    selection = (
        "(call Select (call EventDataset 'f' 't') (lambda (list e) (dict (list 'x') (list (attr e 'x')))))"
    )
    body |= {"selection": selection, "did": "doma://nobody-knows-it"}
    del body["file-list"]
    answer = shared.ask("POST", "/servicex/transformation", json=body)
    assert answer.status_code == 200, answer.text
    id_ = answer.json()["request_id"]
    assert shared.ask("GET", f"/servicex/transformation/{id_}").status_code == 200
    token = shared.token(subject="mallory")
    routes_ = [(m, p) for m, p in OPERATOR | CLOSED if "{id_}" in p]
    told = {(m, p): ask(shared, m, p, token, id_).status_code for m, p in routes_}
    assert {pair: status for pair, status in told.items() if status != 404} == {}
    assert id_ not in shared.ask("GET", "/servicex/transformation", token).text
    assert id_ not in shared.ask("GET", "/requests", token, AWAY).text
    assert shared.ask("GET", f"/servicex/transformation/{id_}").status_code == 200
