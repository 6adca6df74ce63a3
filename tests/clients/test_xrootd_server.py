"""The other end of the client tests is what it says it is."""

import zlib

import httpx
import pytest

pytestmark = pytest.mark.client


def test_it_takes_the_issuers_tokens_and_refuses_without_one(grid):
    grid.xrootd.put("here/a", b"a" * 5000)
    with httpx.Client(verify=grid.system.access.tls()) as client:
        url = grid.xrootd.url("here/a")
        assert client.get(url).status_code == 403
        token = {"Authorization": f"Bearer {grid.system.token()}"}
        answer = client.head(url, headers=token | {"Want-Digest": "adler32"})
        assert answer.status_code == 200
        assert answer.headers["Digest"] == f"adler32={zlib.adler32(b'a' * 5000):08x}"
        assert client.get(url, headers=token).content == b"a" * 5000


def test_it_copies_both_ways(grid):
    grid.xrootd.put("here/b", b"b" * 5000)
    bearer = f"Bearer {grid.system.token()}"
    token = {"Authorization": bearer, "TransferHeaderAuthorization": bearer}
    with httpx.Client(verify=grid.system.access.tls()) as client:
        here, pulled, pushed = (grid.xrootd.url(f"here/{name}") for name in ("b", "pulled", "pushed"))
        for target, other in ((pulled, {"Source": here}), (here, {"Destination": pushed})):
            answer = client.request("COPY", target, headers=token | other)
            assert answer.text.endswith("success: Created"), answer.text
        assert (
            client.get(pulled, headers=token).content
            == client.get(pushed, headers=token).content
            == b"b" * 5000
        )
