"""What the quick side may never forget, and what it counts."""

import threading
import time

import pytest

from doma.auth.gate import Gate
from doma.auth.verifier import Verifier
from doma.core.config import Issuer
from doma.core.errors import StorageUnavailable
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.doors.fast_ask import TRUST
from doma.net.exchange import Answer, Request

ISSUER = "https://issuer.example/doma"


class Clock:
    """Real time, and what a test adds to it."""

    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timed(site, keys, tools, clock):
    """The same files behind a verifier and a door that live by the test's clock."""
    local = {ISSUER: keys.jwks()}
    verifier = Verifier([Issuer(issuer=ISSUER)], [tools.AUDIENCE], local=local, clock=clock, skew=0)
    store = site.endpoints["site"].store
    return Site(verifier, {"site": Endpoint("site", store, Gate({ISSUER: ["/"]}))}, site.emit, "localhost")


def test_a_token_that_expires_between_two_requests_of_a_connection_is_refused(
    timed, clock, launch, sign, tools, trust
):
    token = sign(life=TRUST - 10)
    with launch(tools.application(timed), FastDoor(timed, clock=clock)) as server:
        for secure in (None, trust):
            clock.ahead = 0
            with server.dial(secure) as wire:
                for i in range(5):  # from the third on, nothing but the range is looked at anew
                    got = wire.ask("GET", "/site/f", {"Range": f"bytes={i}-{i + 9}"}, token=token)
                    assert (got.status, got.body) == (206, tools.CONTENT[i : i + 10])
                clock.ahead = TRUST - 5  # the connection still remembers the token
                assert wire.ask("GET", "/site/f", {"Range": "bytes=5-14"}, token=token).status == 401


def test_what_the_fast_side_answers_is_counted(site, launch, token, tools):
    told, done = [], threading.Event()

    def count(endpoint, method, status, received, sent, seconds, number):
        assert 0 < seconds < 60
        told.append((endpoint, method, status, received, sent, number))
        if method == "GET" and len(told) >= 4:
            done.set()

    with launch(tools.application(site), FastDoor(site, count=count)) as server, server.dial() as wire:
        assert wire.ask("PUT", "/site/counted", body=b"12345", token=token).status in {201, 204}
        refused = wire.ask("PUT", "/fixed/counted", body=b"12345", token=token)
        for i in range(7):
            assert wire.ask("GET", "/site/f", {"Range": f"bytes={i}-{i + 9}"}, token=token).status == 206
        assert wire.ask("GET", "/site/f", token=token).status == 200
        assert (
            wire.ask("GET", "/site/cold", token=token).status == 200
        )  # by the application: not ours to count
        assert done.wait(20)
    assert sorted(told, key=lambda row: row[1:3]) == [
        ("site", "GET", 200, 0, len(tools.CONTENT), 1),
        ("site", "GET", 206, 0, 70, 7),
        ("site", "PUT", 201, 5, 0, 1),
        ("fixed", "PUT", refused.status, 0, len(refused.body), 1),
    ]


@pytest.mark.parametrize(
    "field", [b"cache-control", b"pragma", b"if-match", b"if-range", b"want-digest", b"te"]
)
async def test_a_read_with_a_field_of_its_own_meaning_is_left_to_the_application(site, sign, field):
    token = sign()
    await site.verifier.verify(token)
    door = FastDoor(site)

    def answer(*more):
        request = Request({}, tls=False, client=("127.0.0.1", 1), server=("127.0.0.1", 2))
        request.method, request.target = b"GET", b"/site/f"
        request.headers = [(b"authorization", b"Bearer " + token.encode()), *more]
        request.fields = dict(request.headers)
        return door.head(request)

    assert isinstance(answer(), Answer)
    assert isinstance(answer((b"accept", b"*/*")), Answer)
    assert answer((field, b"no-cache")) is None


def test_an_error_after_the_status_is_one_line_in_the_log(launch, caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise StorageUnavailable("/site/f: the disk is gone; try again later")

    with launch(app) as server, server.dial() as wire:
        wire.send(b"GET /site/f HTTP/1.1\r\nHost: x\r\n\r\n")
        while wire.more():
            pass
        assert wire.rest.endswith(b"begun")
    said = [record for record in caplog.records if record.name == "doma.net.bridge"]
    assert [record.exc_info for record in said] == [None]
    assert "the disk is gone" in said[0].getMessage()
