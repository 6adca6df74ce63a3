"""What a token costs: microseconds per call, best of five: ``python tests/bench/bench_auth.py``."""

import asyncio
import tempfile
import timeit
from pathlib import Path

from doma.auth.bearer import bearer_of
from doma.auth.clients import Clients
from doma.auth.gate import Gate
from doma.auth.issuer import Issuer
from doma.auth.keys import KeySet
from doma.auth.model import Verb
from doma.auth.verifier import Verifier
from doma.core import config

URL = "https://se.example.org:8443/cms"
HERE = "https://se.example.org:8443"


def per_call(work, number):
    return min(timeit.repeat(work, number=number, repeat=5)) / number * 1e6


def main(folder):
    keys = KeySet.load_or_make(folder)
    issuer = Issuer(URL, "cms", keys, clients=Clients(folder / "clients.json"))
    check = Verifier([config.Issuer(issuer=URL, vo="cms")], [HERE], local={URL: keys.jwks})
    scope = "storage.read:/store storage.modify:/store/user/alice storage.stage:/store"

    def made(alg):
        return issuer.issue(subject="alice", scopes=scope, audience=[HERE], alg=alg)

    token = made("RS256")
    identity = asyncio.run(check.verify(token))
    gate = Gate({URL: ["/cms"]})
    header, path = f"Bearer {token}", "/cms/store/data/run1/a.root"
    costs = {
        "decide, simple read": per_call(lambda: gate.decide(identity, Verb.READ, path), 20_000),
        "known token": per_call(lambda: check.known(token), 20_000),
        "token out of the header": per_call(lambda: bearer_of(header), 20_000),
    }
    for alg in ("RS256", "ES256"):
        fresh = made(alg)

        async def verify(token=fresh):
            check.forget()
            await check.verify(token)

        async def many(verify=verify):
            for _ in range(100):
                await verify()

        costs[f"verify {alg}"] = per_call(lambda many=many: asyncio.run(many()), 3) / 100
        costs[f"issue {alg}"] = per_call(lambda alg=alg: made(alg), 50)
    print()
    for name, cost in costs.items():
        print(f"{name:24} {cost:8.2f} us")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
