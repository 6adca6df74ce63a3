"""XRootD's own copy program over https (Debian: xrootd-client, xrootd-client-http-plugins)."""

import os
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.clients.conftest import Said, Spot, need

pytestmark = pytest.mark.client

DATA = os.urandom(20 << 20)


@pytest.fixture
def xrdcp(spot: Spot):
    """Runs xrdcp; the token goes as XRootD's clients send it, in the query."""
    need("xrdcp", package="xrootd-client")
    if not [*Path("/usr").glob("lib*/**/libXrdClHttp-5.so")]:
        pytest.skip("xrdcp has no http plug-in (Debian: xrootd-client-http-plugins)")

    def run(source: object, destination: object, token: str = "") -> Said:
        sent = quote(f"Bearer {token or spot.grid.system.token(lifetime=3600)}")
        ends = [
            f"{end}?authz={sent}" if str(end).startswith("https") else end for end in (source, destination)
        ]
        return spot.grid.run("xrdcp", "--allow-http", "--nopbar", "--retry", 0, "-f", *ends, token=None)

    return run


def test_up_and_down_return_every_byte(spot, xrdcp):
    said = xrdcp(spot.file("a", DATA), spot.ours("deep/a"))
    assert said.code == 0, said.why
    said = xrdcp(spot.ours("deep/a"), spot.local / "back")
    assert said.code == 0, said.why
    assert (spot.local / "back").read_bytes() == DATA


def test_a_refusal_is_an_error_and_changes_nothing(spot, xrdcp):
    spot.put("a", b"before")
    reader = spot.grid.system.token("storage.read:/")
    assert xrdcp(spot.file("a", DATA), spot.ours("a"), token=reader).code != 0
    assert spot.get("a") == b"before"
    assert xrdcp(spot.ours("missing"), spot.local / "x").code != 0


def test_the_token_is_in_no_log_of_ours(spot, xrdcp):
    token = spot.grid.system.token(lifetime=3600, subject="logged")
    assert xrdcp(spot.file("a", b"x"), spot.ours("a"), token=token).code == 0
    assert token.rpartition(".")[2] not in spot.grid.system.log
