"""Whose right counts: a client's token goes to the origin, and what it allows is that client's alone."""

from collections.abc import Iterator

import pytest

from doma.core.errors import Forbidden, Unauthenticated
from doma.store.xrootd import XrootdStore
from tests.conftest import System

DATA = b"for those who may " * 10_000


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    base = tmp_path_factory.mktemp("far")
    (base / "doma.toml").write_text(f'[endpoints.site]\nstore = "file://{base}/site"\n')
    system = System(base / "home", "--config", base / "doma.toml", "--role", "issuer", "--role", "storage")
    system.up()
    system.put("/site/mine/f.bin", DATA)
    system.put("/site/mine/g.bin", DATA)
    yield system
    assert system.down() == 0, system.log


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, far: System) -> Iterator[System]:
    """A cache whose own policy lets everybody in: what is refused, the origin refuses."""
    base, place = tmp_path_factory.mktemp("near"), far.run["https"].removeprefix("https://")
    (base / "doma.toml").write_text(
        f'[cache]\nallow = ["https://{place}", "roots://{place}"]\n'
        f'[[auth.issuers]]\nissuer = "{far._issuer.url}"\nca_file = "{far.run["ca_file"]}"\n'
        f'[endpoints.cache]\nstore = "cache+roots://{place}//site"\npublic = true\nwritable = false\n'
    )
    system = System(base / "home", "--config", base / "doma.toml", "--role", "issuer", "--role", "storage",
                    "--role", "cache", "--role", "web")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", far.run["ca_file"])
        system.up()
    yield system
    assert system.down() == 0, system.log


def token(far: System, scope: str) -> str:
    return far.token(scope, subject=scope, audience=("https://wlcg.cern.ch/jwt/v1/any",))


async def by_root(near: System, path: str, told: str | None) -> bytes:
    """Read it with this token, or raise what the door says."""

    async def bearer() -> str | None:
        return told

    place = near.run["https"].removeprefix("https://")
    store = XrootdStore(f"roots://{place}//", token=bearer, ca_file=near.run["ca_file"])
    try:
        reader = await store.open(path)
        try:
            return bytes(await reader.read(0, reader.stat.size))
        finally:
            await reader.close()
    finally:
        await store.close()


@pytest.mark.parametrize("name", ["f.bin", "g.bin"])
@pytest.mark.parametrize("scheme", ["https", "roots"])
async def test_a_hit_is_for_those_whom_the_origin_itself_has_let_in(
    near: System, far: System, scheme: str, name: str
) -> None:
    path = f"/cache/{scheme}:/{far.run['https'].removeprefix('https://')}/site/mine/{name}"
    may, may_not = token(far, "storage.read:/"), token(far, "storage.read:/other")
    if name == "g.bin":  # cold by root://, the other one cold by https
        assert await by_root(near, path, may) == DATA
    first = near.ask("GET", path, may)
    assert (first.status_code, first.content) == (200, DATA)
    assert near.ask("GET", path, may).headers["X-Cache"] == "HIT"
    assert await by_root(near, path, may) == DATA
    assert near.ask("GET", path, may_not).status_code == 403
    assert near.ask("GET", path, None).status_code == 401
    with pytest.raises(Forbidden):
        await by_root(near, path, may_not)
    with pytest.raises((Unauthenticated, Forbidden)):
        await by_root(near, path, None)
    other = token(far, "storage.read:/mine")  # not seen before: the origin is asked, and lets it
    assert near.ask("GET", path, other).content == DATA


async def test_a_fixed_root_origin_is_shown_the_clients_own_token(near: System, far: System) -> None:
    may = token(far, "storage.read:/")
    assert near.ask("GET", "/cache/mine/f.bin", token(far, "storage.read:/other")).status_code == 403
    assert near.ask("GET", "/cache/mine/f.bin", may).content == DATA
    assert await by_root(near, "/cache/mine/g.bin", may) == DATA
