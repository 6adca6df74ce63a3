"""Single-user mode asked by pages in the user's browser, and by who is behind a proxy or elsewhere."""

import json

import httpx
import pytest

SELECTION = (
    "(call Select (call EventDataset 'f' 'events') (lambda (list e) (dict (list 'x') (list (attr e 'pt1')))))"
)
BODY = json.dumps({"did": "doma://none", "selection": SELECTION, "codegen": "uproot"})
CHANGES = ("/servicex/transformation", "/servicex/transformation/cancel-all")


@pytest.fixture(scope="module")
def open_(tmp_path_factory):
    from tests.conftest import System

    base = tmp_path_factory.mktemp("open")
    (base / "doma.toml").write_text("[columns]\nopen = true\n")
    system = System(base / "home", "--config", base / "doma.toml")
    system.up()
    yield system
    assert system.down() == 0, system.log


@pytest.fixture
def http(open_):
    """Asks over plain HTTP on loopback, as a page's script could."""
    with httpx.Client(base_url=open_.run["url"], timeout=60) as client:
        yield client


FOREIGN = {
    "a page": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    "a page of an old browser": {"Origin": "null"},
    "a form of another port": {"Sec-Fetch-Site": "same-site", "Content-Type": "text/plain"},
    "a name that leads here": {"Host": "evil.example"},
    "a name that leads here, same origin": {"Host": "evil.example", "Origin": "http://evil.example"},
    "a name that looks like ours": {"Host": "127.0.0.1.evil.example"},
    "a proxy": {"X-Forwarded-For": "127.0.0.1"},
    "another proxy": {"Forwarded": "for=127.0.0.1"},
    "a third proxy": {"X-Real-IP": "127.0.0.1"},
}


def test_who_runs_the_system_needs_no_token(http):
    assert http.get("/servicex").status_code == 200
    answer = http.post(CHANGES[0], content=BODY, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 200, answer.text
    assert http.get("/requests").status_code == 200
    assert http.get("/servicex", headers={"Authorization": "Bearer None"}).status_code == 200


@pytest.mark.parametrize("who", FOREIGN)
def test_nobody_else_is_taken_for_that_user(http, who):
    for path in CHANGES:
        answer = http.post(path, content=BODY, headers=FOREIGN[who])
        assert answer.status_code == 401, (path, answer.text)
        assert not any(name.startswith("access-control") for name in answer.headers)
    for path in ("/servicex", "/servicex/transformation", "/api/v1/datasets"):
        assert http.get(path, headers=FOREIGN[who]).status_code == 401, path
    assert http.put("/api/v1/datasets/x", content=b"{}", headers=FOREIGN[who]).status_code == 401
    for path in ("/token/servicex", "/token/refresh"):
        as_json = {**FOREIGN[who], "Content-Type": "application/json"}
        assert http.post(path, content=b"{}", headers=as_json).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"])
def test_a_name_of_an_attacker_that_leads_here_shows_and_stops_nothing(http, host):
    id_ = http.post(CHANGES[0], content=BODY).json()["request_id"]
    same = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for path in ("/", "/requests", f"/requests/{id_}", f"/transformation-request/{id_}", "/metrics"):
        answer = http.get(path, headers=same)
        assert answer.status_code == 401, path
        assert id_ not in answer.text.replace(path, "")
    assert http.post(f"/requests/{id_}/cancel", headers=same).status_code == 401


def test_a_token_that_is_no_good_is_no_way_in_though_none_is_needed(http):
    for token in ("x", "x.y.z", "none"):
        assert http.get("/servicex", headers={"Authorization": f"Bearer {token}"}).status_code == 401


def test_no_answer_sets_a_cookie_that_a_foreign_page_could_use(http):
    for path in ("/servicex", "/requests", "/", "/health"):
        assert "set-cookie" not in http.get(path).headers
