"""What strangers try against column delivery of a whole running system."""

import http.server
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from doma.auth.compact import parse
from tests.conftest import System

COUNT = (
    "(call Select (call EventDataset 'f' 'Events') (lambda (list e) (dict (list 'x') (list (attr e 'x')))))"
)


@pytest.fixture
def evil(tmp_path) -> Iterator[tuple[str, list[str]]]:
    """A server of its own folder that keeps the tokens it is shown."""
    tokens: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            if shown := self.headers.get("Authorization"):
                tokens.append(shown.removeprefix("Bearer "))
            return super().send_head()

        def log_message(self, format: str, *args: object) -> None: ...

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}", tokens
    made.shutdown()
    made.server_close()
    thread.join()


def ended(system: System, *urls: str) -> dict[str, Any]:
    body = {"file-list": urls, "selection": COUNT, "codegen": "uproot"}
    answer = system.ask("POST", "/servicex/transformation", json=body)
    assert answer.status_code == 200, answer.text
    path, ends = f"/servicex/transformation/{answer.json()['request_id']}", time.monotonic() + 60
    while (found := system.ask("GET", path).json())["finish-time"] == "None":
        assert time.monotonic() < ends
    return dict(found)


def test_an_origin_behind_a_cache_sees_no_token_of_wide_right_however_the_cache_is_spelled(
    start, evil, tmp_path
):
    url, tokens = evil
    (tmp_path / "f.root").write_bytes(b"root" * 1000)
    config = tmp_path / "doma.toml"
    config.write_text(
        f'[columns]\ninputs = ["{url}"]\n[cache]\nallow = ["{url}"]\n'
        '[tpc]\nallow = ["loopback"]\nplain_http = true\n'
    )
    system = start("home", "--config", config)
    here, door = system.run["https"], system.run["https"].replace("https", "root", 1)
    ended(
        system,
        f"{here}/cache/{url}/f.root",
        f"{here}/%63ache/{url}/f.root#1",
        f"{here}//cache/{url}/f.root#2",
        f"{here}/./cache/{url}/f.root#3",
        f"{here.replace('https', 'HTTPS')}/cache/{url}/f.root#4",
        f"{door}//cache/{url}/f.root#5",
        f"{door}//%63ache/{url}/f.root#6",
    )
    system.ask(
        "POST",
        "/servicex/transformation",
        json={"did": f"xrootd://{door}//cache/{url}/*.root", "selection": COUNT, "codegen": "uproot"},
    )
    shown = [parse(token).claims for token in set(tokens)]
    assert shown
    assert {found["sub"] for found in shown} == {"bearer of ada"}
    assert {found["scope"].partition("/http:/")[0] for found in shown} == {"storage.read:"}


def test_who_has_too_much_unfinished_is_told_to_come_again(start, tmp_path):
    config = tmp_path / "doma.toml"
    config.write_text("[columns]\nunfinished = 3\n")
    system = start("home", "--config", config)
    body = {"selection": COUNT, "codegen": "uproot"}
    here = system.run["https"]
    many = [f"{here}/site/{i}.root" for i in range(3)]
    answer = system.ask("POST", "/servicex/transformation", json={**body, "file-list": many})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    assert "unfinished" in answer.json()["message"]
    assert system.ask("GET", "/servicex/transformation").json() == {"requests": []}
    few = system.ask("POST", "/servicex/transformation", json={**body, "file-list": many[:1]})
    assert few.status_code == 200
