"""Connections that outlive the token that they were opened with: each request is judged when it comes."""

import http.client
import time
from pathlib import Path

import httpx
import pyarrow.flight as fl
import pytest

from doma.store.s3_signature import Credentials, presigned
from doma.store.xrootd import XrootdStore

LIFE = 12.0
"""Seconds: opening everything takes a few on a busy machine."""
PARQUET = Path(__file__).parents[1] / "data/nano_dy.parquet"


async def test_no_kept_connection_knows_a_token_longer_than_it_lives(start):
    system = start("home")
    system.put("/site/late/f.parquet", PARQUET.read_bytes())
    place, tls = system.run["https"].removeprefix("https://"), system.access.tls()
    begun = time.time()
    token = system.token("storage.read:/late storage.modify:/late", lifetime=LIFE)
    bearer = {"Authorization": f"Bearer {token}"}
    kept = http.client.HTTPSConnection(place, context=tls, timeout=60)

    def ask(method, path, headers=None, body=None):
        kept.request(method, path, body, headers or {})
        answer = kept.getresponse()
        return answer.status, answer.read()

    key = system.ask("POST", "/api/v1/s3/keys", token, json={"endpoint": "site", "prefix": "/late"}).json()
    pair = Credentials(key["access_key"], key["secret_key"], key["session_token"])
    signed = presigned(
        "GET", f"https://{place}/site/late/f.parquet", pair, now=begun, life=3600
    ).removeprefix(f"https://{place}")
    options = fl.FlightCallOptions(timeout=60, headers=[(b"authorization", f"Bearer {token}".encode())])
    flight = fl.FlightClient(
        system.run["services"]["flight"],
        tls_root_certs=Path(system.run["ca_file"]).read_bytes(),
    )
    named = fl.FlightDescriptor.for_path("/site/late/f.parquet")

    async def mine():
        return token

    root = XrootdStore(f"roots://{place}//site", token=mine, ca_file=system.run["ca_file"])
    stream = httpx.Client(base_url=system.run["https"], verify=tls, timeout=60)
    try:
        # while it is good, everything is
        for _ in range(3):
            assert ask("GET", "/site/late/f.parquet", bearer | {"Range": "bytes=0-3"}) == (206, b"PAR1")
        assert ask("PUT", "/site/late/new", bearer, b"x")[0] == 201
        assert ask("GET", signed)[1][:4] == b"PAR1"
        info = flight.get_flight_info(named, options)
        assert flight.do_get(info.endpoints[0].ticket, options).read_all().num_rows
        reader = await root.open("/late/f.parquet")
        assert bytes(await reader.read(0, 4)) == b"PAR1"
        with stream.stream("GET", "/events", headers=bearer) as events:
            assert events.status_code == 200
            assert time.time() < begun + LIFE, "this machine is too busy for the test"
            # the stream ends by itself, when the token does
            assert "event: expired" in events.read().decode()

        # and afterwards nothing is, though every connection is still open
        for method, path in (
            ("GET", "/site/late/f.parquet"),
            ("DELETE", "/site/late/new"),
            ("GET", "/events"),
        ):
            assert ask(method, path, bearer)[0] == 401, path
        assert ask("PUT", "/site/late/new2", bearer, b"x")[0] == 401
        status, text = ask("GET", signed)
        assert (status, b"ExpiredToken" in text) == (403, True)
        for call in (
            lambda: flight.get_flight_info(named, options),
            lambda: flight.do_get(info.endpoints[0].ticket, options).read_all(),
        ):
            with pytest.raises(fl.FlightUnauthenticatedError):
                call()
        with pytest.raises(Exception, match="expired"):
            await reader.read(4, 8)
        assert system.ask("GET", "/site/late/new").content == b"x"
        assert system.ask("GET", "/site/late/new2").status_code == 404
    finally:
        await root.close()
        kept.close()
        flight.close()
        stream.close()
