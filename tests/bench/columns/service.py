"""What the service adds to the engine: a small request, a thousand files, a repeated question.

A real service with real worker processes, a database and a store on disk, and inputs behind a real https
server; only the way from the client to the routes is in this process.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from doma.auth.clients import Clients
from doma.auth.issuer import Issuer
from doma.auth.keys import KeySet
from doma.net import tls
from tests.bench.columns import samples
from tests.e2e.columns import conftest as site

REPO = Path(__file__).parents[3]

QUERY = (
    "(call Select (call EventDataset 'f' 'Events') "
    "(lambda (list e) (dict (list 'met') (list (attr e 'MET_pt')))))"
)
FILES = 1000


class Everybody:
    """Tokens for every user: both may read the input."""

    async def token(self, owner: Any, url: str) -> str:
        return site.TOKEN


async def measure(folder: Path) -> dict[str, Any]:
    """Seconds and bytes of the three cases."""
    site.Tokens = Everybody  # type: ignore[misc,assignment]
    with tempfile.TemporaryDirectory(dir=folder) as home_:
        home = Path(home_)
        inputs = site.serve(home, tls.ensure(home / "tls"))
        small = home / "inputs/tiny.root"
        samples.adl(small, REPO / "tests/data/Run2012B_SingleMu-1000.parquet", 100)
        for number in range(FILES):
            (home / f"inputs/{number:04}.root").symlink_to(small)
        issuer = Issuer(
            "https://results.test/vo",
            "vo",
            KeySet.load_or_make(home / "k"),
            clients=Clients(home / "c.json"),
        )
        house = site.House(home, inputs, issuer)
        await house.service.start()
        try:
            return await _measure(house, inputs)
        finally:
            await house.close()
            inputs.close()


async def _measure(house: Any, inputs: Any) -> dict[str, Any]:
    muons = QUERY.replace("'MET_pt'", "'nMuon'")
    await _asked(house, QUERY, [inputs.url("tiny.root")])  # warms the worker
    small = await _asked(house, muons, [inputs.url("muons.root")])
    begun = len(house.pool.outcomes)
    many = await _asked(house, QUERY, [inputs.url(f"{n:04}.root") for n in range(FILES)])
    work = sum(o.seconds for o in house.pool.outcomes[begun:])
    begun = len(house.pool.outcomes)
    again = await _asked(house, muons, [inputs.url("muons.root")], "bob")
    read = sum(o.read for o in house.pool.outcomes[begun:])
    return {
        "small request, submit to result readable, ms": round(1000 * small, 1),
        f"{FILES} files, wall per file, ms": round(1000 * many / FILES, 2),
        "of it reading and evaluating, ms": round(1000 * work / FILES, 2),
        "overhead per file, ms": round(1000 * (many - work) / FILES, 2),
        "repeated by another user, ms": round(1000 * again, 1),
        "input bytes read by that": read,
    }


async def _asked(house: Any, query: str, files: list[str], user: str = "alice") -> float:
    """Seconds from the submission until the request is complete and its results can be read."""
    body = {"did": None, "file-list": files, "selection": query, "codegen": "uproot", "title": "bench",
            "result-destination": "object-store", "result-format": "parquet"}  # fmt: skip
    async with house.http(user) as http:
        begun = time.perf_counter()
        answer = await http.post("/servicex/transformation", json=body)
        answer.raise_for_status()
        place = f"/servicex/transformation/{answer.json()['request_id']}"
        while (state := (await http.get(place)).json()["status"]) not in {"Complete", "Fatal", "Canceled"}:
            await asyncio.sleep(0.002 if len(files) == 1 else 0.05)
        assert state == "Complete", state
        return time.perf_counter() - begun
