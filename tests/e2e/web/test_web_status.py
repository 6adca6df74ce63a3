"""The status page of a whole system, asked as a browser asks."""

import json
import os
import shutil
import subprocess

import httpx


def test_the_page_of_a_running_system_is_live_and_tells_of_an_upload(shared):
    url, errors = shared.run["url"], shared.log.count("ERROR")
    with httpx.Client(base_url=url, timeout=60) as http:
        page = http.get("/").text
        assert "cache of https://" in page
        with http.stream("GET", "/events/page") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            shown = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
            assert "a&lt;b.root" not in next(shown)
            shared.put("/site/a%3Cb.root", b"x" * 2048)
            fresh = next(s for s in shown if "a&lt;b.root" in s)
        assert "size 2.00 KiB" in fresh
        facts = http.get("/", headers={"accept": "application/json"}).json()
        assert "/site/a<b.root" in {event["subject"] for event in facts["events"]}
        assert set(facts["cache"]["cache"]) >= {"bytes", "counts", "hit_ratio", "used", "size"}
    stranger = _as_nobody(f"{url}/")
    if stranger is not None:
        assert (stranger, _as_nobody(f"{url}/metrics")) == ("401", "200")
    assert shared.log.count("ERROR") == errors
    assert shared.ask("DELETE", "/site/a%3Cb.root").status_code == 204


def _as_nobody(url):
    """The status that another user of this machine gets; None where we cannot become one."""
    curl = shutil.which("curl", path="/usr/bin:/bin")
    if os.geteuid() != 0 or curl is None:
        return None
    command = [curl, "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", url]
    return subprocess.run(command, user=65534, group=65534, capture_output=True, text=True, check=True).stdout
