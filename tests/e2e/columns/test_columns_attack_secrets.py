"""Tokens and signatures in the URLs of inputs stay out of all that others see, and inputs stay apart."""

import http.server
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.columns.naming import LONGEST, object_name

ZMUMU = Path(__file__).parents[2] / "data/uproot-Zmumu.root"
SELECTION = (
    "(call Select (call EventDataset 'f' 'events') (lambda (list e) (dict (list 'x') (list (attr e 'pt1')))))"
)
HUSH = "hushhush0123456789"
ROOT = "/servicex/transformation"


@pytest.fixture
def origin(tmp_path):
    """A server whose files need no token, and that ignores queries."""
    (tmp_path / "www").mkdir()
    shutil.copy(ZMUMU, tmp_path / "www/z.root")
    (tmp_path / "www/bad.root").write_bytes(b"root" + bytes(1000))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    made = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www"))
    )
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join()


def test_a_secret_of_an_input_is_in_no_name_page_log_or_reason(start, origin, tmp_path):
    config = tmp_path / "doma.toml"
    config.write_text(f'[columns]\ninputs = ["{origin}"]\n')
    system = start("home", "--config", config)
    names = ("authz", "access_token", "X-Amz-Signature", "token", "macaroon")
    urls = [f"{origin}/{n}.root?{k}={HUSH}{k}&a=1" for k in names for n in ("z", "bad", "none")]
    body: dict[str, Any] = {"file-list": urls, "selection": SELECTION, "codegen": "uproot"}
    body |= {"result-format": "parquet", "result-destination": "object-store"}
    answer = system.ask("POST", ROOT, json=body)
    assert answer.status_code == 200, answer.text
    id_, ends = answer.json()["request_id"], time.monotonic() + 60
    while (found := system.ask("GET", f"{ROOT}/{id_}").json())["status"] in {"Submitted", "Running"}:
        assert time.monotonic() < ends
    assert (found["files-completed"], found["files-failed"]) == (len(names), 2 * len(names))
    rows = system.ask("GET", f"{ROOT}/{id_}/status?details=true").json()["details"]
    made = [row["s3-object-name"] for row in rows if row["transform_status"] == "success"]
    assert len(set(made)) == len(names), "inputs are told apart"
    told = [row["reason"] or "" for row in rows] + [str(row["history"]) for row in rows] + made
    told += [str(row["place"]) + str(row["log"]) for row in rows] + [str(found["failure-info"])]
    told += [system.ask("GET", f"{ROOT}/{id_}/events").text, system.log]
    for path in ("/requests", f"/requests/{id_}", "/metrics", "/"):
        answer = system.ask("GET", path, None)
        assert answer.status_code == 200
        told.append(answer.text)
    assert not [text[:500] for text in told if HUSH in text]


@pytest.mark.parametrize("secret", [f"https://u:{HUSH}@a.org/f", f"ftp://a.org/f?authz={HUSH}",
                                    f"https://a.org/ f?sig={HUSH}", f"file:///f?token={HUSH}"])  # fmt: skip
def test_a_refusal_repeats_no_secret(shared, secret):
    body = {"file-list": [secret], "selection": SELECTION, "codegen": "uproot"}
    answer = shared.ask("POST", ROOT, json=body)
    assert answer.status_code == 400
    assert HUSH not in answer.text
    assert HUSH not in shared.log


@given(st.text("ab&=?/%", max_size=300), st.text("xyz", min_size=1, max_size=9))
def test_two_inputs_never_have_results_of_one_name_for_their_secrets(path, secret):
    one, other = (f"https://a.org/{path}?authz={HUSH}{s}" for s in (secret, secret + "w"))
    names = object_name(one), object_name(other)
    assert names[0] != names[1]
    assert all(len(n) <= LONGEST and HUSH not in n for n in names) or "?" in path


def test_what_has_no_secret_keeps_its_name():
    assert object_name("https://a.org/f.root?x=1", "root-file") == "https:::a.org:f.root?x=1"
