"""Clients that read columns through the cache: what that costs the origin, in bytes and requests."""

import time

import numpy as np
import pytest
import uproot

from doma.cache.layout import decode
from doma.cache.layout_names import chosen
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.store.file import FileStore
from tests.e2e.served import CountingHttp, Served

COLUMNS, CLUSTERS, ROWS = 150, 10, 4000
WANTED = ["x003", "x004", "x120", "x121", "x147"]


class Server(Served):
    """A site, and two caches of it: ``keen`` fetches columns ahead, ``plain`` does not."""

    def __init__(self, home):
        super().__init__({"site": FileStore(home / "site")})
        self._home = home
        self.asked = {"keen": [], "plain": []}

    def caches(self):
        self.of = {
            name: CacheStore(
                self._home / name,
                Origins(CountingHttp(asked, f"{self.base}/site"), name="site"),
                Cache(foresight=name == "keen"),
            )
            for name, asked in self.asked.items()
        }
        return self.of

    def layout(self, size):
        """What the keen cache has learned of the one file."""
        while not (kept := [p for p in (self._home / "keen/layouts").glob("*/*") if not p.suffix]):
            time.sleep(0.01)
        return decode(kept[0].read_bytes(), size)

    def foreseen(self, cluster):
        """Wait until the wanted columns of a cluster are here; the test's own timeout ends what never is."""
        layout, cache = self.layout(self.size), self.of["keen"]
        pages = cache.catalogue.get(cache.place("/wide.root").key).fetcher.pages
        wanted = chosen(layout.names, WANTED, "Events", "/wide.root")
        while cluster > 2 and not all(pages.present(a, b) for a, b in layout.ranges(wanted, [cluster])):
            time.sleep(0.005)


def rows(cluster):
    rng = np.random.default_rng(cluster)
    return {f"x{n:03d}": rng.random(ROWS) for n in range(COLUMNS)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "site").mkdir()
    with uproot.recreate(home / "site" / "wide.root", compression=None) as file:
        tree = file.mktree("Events", dict.fromkeys(rows(0), "f8"), initial_basket_capacity=CLUSTERS)
        for cluster in range(CLUSTERS):
            tree.extend(rows(cluster))
    with Server(home) as server:
        server.size = (home / "site" / "wide.root").stat().st_size
        yield server


def analyse(server, name):
    """Sum five columns cluster by cluster, slowly enough for the next one to come unasked."""
    total = np.zeros(len(WANTED))
    with uproot.open(
        f"{server.base}/{name}/wide.root", headers={"Authorization": f"Bearer {server.token()}"}
    ) as file:
        tree = file["Events"]
        for cluster in range(CLUSTERS):
            part = tree.arrays(
                WANTED, entry_start=cluster * ROWS, entry_stop=(cluster + 1) * ROWS, library="np"
            )
            total += [part[column].sum() for column in WANTED]
            if name == "keen" and cluster:
                server.foreseen(cluster + 1)
    return total


def test_five_columns_of_many_cost_the_origin_little_more_than_their_bytes(server):
    expected = sum(np.array([rows(k)[c].sum() for c in WANTED]) for k in range(CLUSTERS))
    sums = {name: analyse(server, name) for name in ("plain", "keen")}
    layout = server.layout(server.size)
    columns = layout.ranges(chosen(layout.names, WANTED, "Events", "/wide.root"))
    wanted = sum(b - a for a, b in columns)
    metadata = sum(b - a for a, b in layout.metadata)
    for name, asked in server.asked.items():
        assert np.allclose(sums[name], expected, rtol=1e-12)
        assert sum(b - a for a, b in asked) <= 1.3 * wanted + metadata
        stray = [(a, b) for a, b in asked if not any(a < stop and start < b for start, stop in columns)]
        assert all(any(a < stop and start < b for start, stop in layout.metadata) for a, b in stray)
    keen, plain = (server.of[name].stats().bytes for name in ("keen", "plain"))
    assert keen["prefetched"] >= 0.6 * wanted
    assert keen["prefetched"] >= 0.8 * keen["prefetch"]
    assert (plain["prefetch"], plain["prefetched"]) == (0, 0)
    # Each byte once, asked for or not: foresight changes when, not what.
    assert keen["origin"] <= plain["origin"] * 1.05
