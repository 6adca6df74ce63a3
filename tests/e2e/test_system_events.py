"""Events of a whole system: from the upload to a subscriber's socket, and to nobody else's."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest


class Listener:
    """One subscriber's stream."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        assert next(lines).startswith("retry: "), "the stream has begun: what happens from now on is heard"

    def next(self) -> dict[str, Any]:
        """The next event; its facts under their names, its number as ``id``."""
        kind = ""
        for line in self._lines:
            field, _, value = line.partition(": ")
            if field == "event":
                kind = value
            elif field == "data":
                found: dict[str, Any] = json.loads(value)
                assert found["kind"] == kind
                return found
        raise AssertionError("the stream ended")


@pytest.fixture
def listen(shared: Any) -> Iterator[Any]:
    """Opens streams and closes them after the test."""
    with ExitStack() as stack:

        @contextmanager
        def stream(token: str, query: str, headers: dict[str, str]) -> Iterator[Listener]:
            sent = {"Authorization": f"Bearer {token}", **headers}
            with (
                httpx.Client(base_url=shared.run["https"], verify=shared.access.tls(), timeout=30) as http,
                http.stream("GET", "/events" + query, headers=sent) as answer,
            ):
                assert answer.status_code == 200
                assert answer.headers["content-type"].startswith("text/event-stream")
                yield Listener(answer.iter_lines())

        yield lambda token, query="", headers=None: stack.enter_context(stream(token, query, headers or {}))


def upload(shared: Any, path: str, subject: str, data: bytes = b"x") -> None:
    answer = shared.ask("PUT", path, shared.token(subject=subject), content=data)
    assert answer.status_code in {201, 204}


def test_an_upload_is_heard_by_its_owner_and_by_operators_and_by_nobody_else(shared, listen):
    operator = listen(shared.admin(), "?kind=file.*")
    # nobody else's names: what other tests of this system did may still be on its way
    nell, otto = (listen(shared.token(subject=name), "?kind=file.*") for name in ("nell", "otto"))
    upload(shared, "/site/events/of-nell", "nell", b"12345")
    upload(shared, "/site/events/of-otto", "otto")
    heard = nell.next()
    assert (heard["kind"], heard["subject"]) == ("file.landed", "/site/events/of-nell")
    assert heard["data"] == {"endpoint": "site", "size": 5, "adler32": "02f80100"}
    # the first that otto hears is his own: nell's came before it and was not for him
    assert otto.next()["subject"] == "/site/events/of-otto"
    told: list[str] = []
    while len(told) < 2:
        told += [said for said in [operator.next()["subject"]] if said.startswith("/site/events/of-")]
    assert told == ["/site/events/of-nell", "/site/events/of-otto"]


def test_what_was_missed_comes_after_a_reconnect_in_order_and_once(shared, listen):
    first = listen(shared.token(subject="eve"), "?kind=file.landed")
    upload(shared, "/site/events/1", "eve")
    seen = first.next()
    for n in range(2, 6):
        upload(shared, f"/site/events/{n}", "eve")
    again = listen(shared.token(subject="eve"), "?kind=file.landed", {"Last-Event-ID": str(seen["id"])})
    upload(shared, "/site/events/6", "eve")
    assert [again.next()["subject"] for _ in range(5)] == [f"/site/events/{n}" for n in range(2, 7)]
    assert [first.next()["subject"] for _ in range(5)] == [f"/site/events/{n}" for n in range(2, 7)]


def test_a_change_of_every_kind_is_told(shared, listen):
    ada = listen(shared.token(subject="mia"))
    token = shared.token(subject="mia")
    upload(shared, "/site/events/a", "mia")
    to = {"Destination": shared.run["https"] + "/site/events/b"}
    assert shared.ask("MOVE", "/site/events/a", token, to).status_code == 201
    assert shared.ask("DELETE", "/site/events/b", token).status_code == 204
    kinds = [ada.next() for _ in range(3)]
    assert [(e["kind"], e["subject"]) for e in kinds] == [
        ("file.landed", "/site/events/a"),
        ("file.moved", "/site/events/b"),
        ("file.deleted", "/site/events/b"),
    ]


def test_a_request_for_columns_tells_its_owner_when_it_ends(shared, listen):
    from doma.facility.sample import sample

    shared.put("/site/events/muons.root", sample("nano_dimuon.root").read_bytes())
    ada, bob = (listen(shared.token(subject=name), "?kind=request.*") for name in ("admin", "bob"))
    url = shared.run["https"] + "/site/events/muons.root"
    assert len(shared.deliver(url, ("nMuon",), "Events")) == 40
    heard = ada.next()
    while heard["kind"] != "request.finished":
        heard = ada.next()
    assert heard["subject"]
    one = "(lambda (list e) (dict (list 'n') (list (attr e 'nMuon'))))"
    query = f"(call Select (call EventDataset 'f' 'Events') {one})"
    token = shared.token(subject="bob")
    answer = shared.ask(
        "POST", "/servicex/transformation", token, json={"selection": query, "file-list": [url]}
    )
    mine = answer.json()["request_id"]
    assert bob.next()["subject"] == mine


def test_neither_the_stream_nor_its_rows_hold_a_credential_of_the_requests_they_tell_of(shared, listen):
    """Tokens in headers and queries, macaroons, signed links, also in failures and in what clients say."""
    operator, end = listen(shared.admin()), "/site/events/secret-end"
    token = shared.token(subject="zoe")
    macaroon = shared.ask(
        "POST", "/site/events/", token, {"Content-Type": "application/macaroon-request"},
        json={"caveats": ["activity:DOWNLOAD,UPLOAD,MANAGE"], "validity": "PT5M"},
    ).json()["macaroon"]  # fmt: skip
    signed = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=5ec2e7&X-Amz-Security-Token=hush"
    refresh = "doma-rt.veryhushedword"
    base = shared.run["https"]
    shared.ask("PUT", f"/site/events/s?authz={token}", "", content=b"x")
    shared.ask("PUT", "/site/events/m", macaroon, content=b"x")
    for number, source in enumerate(
        (
            f"{base}/site/events/s?authz={token}",
            f"{base}/site/events/none?{signed}",
            f"https://127.0.0.1:9/f?authz={token}&{signed}&access_token={macaroon}",
            f"https://127.0.0.1:9/f?token={refresh}",
        )
    ):
        headers = {
            "Source": source, "TransferHeaderAuthorization": f"Bearer {token}", "SciTag": "66",
            "ClientInfo": f"job={number}; token={token}; refresh_token={refresh}; authz={macaroon}",
        }  # fmt: skip
        shared.ask("COPY", f"/site/events/c{number}", token, headers)
    upload(shared, end, "zoe")
    heard = []
    while not heard or heard[-1]["subject"] != end:
        heard.append(operator.next())
    kinds = {event["kind"] for event in heard}
    assert {"file.landed", "copy.started", "copy.failed"} <= kinds, kinds
    secrets = (token, token.split(".")[1], token.split(".")[2], macaroon, "5ec2e7", "hush", "veryhushed")
    found = json.dumps(heard)
    assert [word for word in secrets if word in found] == []
    rows = b"".join(path.read_bytes() for path in sorted(shared.home.path.glob("doma.db*")))
    assert b"copy.failed" in rows
    assert [word for word in secrets if word.encode() in rows] == []
    assert [word for word in secrets if word in shared.log] == []
