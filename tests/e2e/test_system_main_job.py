"""The main job: the same numbers by every road, and a demo that says so only when it is true."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doma.core.errors import Inconsistent
from doma.facility import roads
from doma.facility.dimuon import COLUMNS, TREE, Spectrum, reference, spectrum
from doma.facility.sample import generate

EVENTS = 4000
ROADS = ("direct", "cached", "warm", "delivered", "scanned")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few thousand generated events."""
    return generate(tmp_path_factory.mktemp("main") / "generated.root", EVENTS)


@pytest.fixture(scope="module")
def results(shared: Any, local: Path) -> dict[str, roads.Road]:
    """What each road found; without Dask, which the demo itself uses."""
    import uproot

    access, path = shared.access, "/main/generated.root"
    roads.upload(access, {path: local}, lambda n: None)
    with uproot.open(access.endpoint("site") + path, **access.uproot_options()) as file:
        muons = file[TREE].arrays(list(COLUMNS))
    found = {"direct": roads.Road("direct", spectrum(muons), len(muons), 0, 0, 0.0)}
    for name in ("cached", "warm"):
        found[name], moved = roads.through_cache(access, path, name)
        assert found[name].bytes_origin == moved["origin"]
    return found | {"delivered": roads.delivered(access, path), "scanned": roads.scanned(access, path)}


def test_every_road_finds_what_plain_uproot_finds_integer_for_integer(results, local):
    expected = reference(local)
    assert expected.pairs > EVENTS / 2
    roads.check(list(results.values()), expected)
    for road in results.values():
        assert road.found.pairs == expected.pairs, road.name
        assert np.array_equal(road.found.counts, expected.counts), road.name


def test_each_road_costs_what_it_should(results, local):
    size = local.stat().st_size
    assert results["direct"].events == results["cached"].events == EVENTS
    assert 0 < results["cached"].bytes_origin <= size + (1 << 20)
    assert results["warm"].bytes_origin == 0
    assert results["warm"].bytes_received == results["cached"].bytes_received > 0
    for name in ("delivered", "scanned"):
        assert 0 < results[name].events < EVENTS, "events without two muons stay at the storage"
        assert results[name].bytes_origin > 0
    assert results["scanned"].bytes_origin <= size + (1 << 20)


@pytest.mark.parametrize("what", ["pairs", "counts"])
def test_roads_that_disagree_are_named_with_the_first_difference(results, local, what):
    expected = reference(local)
    counts = expected.counts.copy()
    counts[60] += 1
    wrong = (
        Spectrum(expected.pairs + 1, expected.counts) if what == "pairs" else Spectrum(expected.pairs, counts)
    )
    with pytest.raises(Inconsistent) as caught:
        roads.check(list(results.values()), wrong)
    assert caught.value.exit != 0
    assert caught.value.message.startswith("direct: ")
    assert ("bin 60" in caught.value.message) == (what == "counts")
    damaged = replace(results["scanned"], found=wrong)
    with pytest.raises(Inconsistent, match=r"^scanned: "):
        roads.check([results["direct"], damaged], expected)


def test_an_upload_is_what_the_storage_has(shared, tmp_path):
    path = tmp_path / "sent"
    path.write_bytes(b"sent" * 1_000_000)
    sent: list[int] = []
    roads.upload(shared.access, {"/main/a name+with%odd": path}, sent.append)
    assert sum(sent) == 4_000_000
    assert (shared.home / "site" / "main" / "a name+with%odd").read_bytes() == path.read_bytes()


def test_a_demo_on_a_running_home_agrees_says_so_draws_it_and_leaves_the_home_running(shared, said, tmp_path):
    code, out, err = said("demo", "--home", shared.home.path, "--events", 2000, "--json",
                          tmp_path / "out.json", "--plot", tmp_path / "out.png")  # fmt: skip
    assert code == 0, err
    assert "all roads agree with plain uproot" in out
    assert set(ROADS) <= set(out.split())
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found) == {"equal", "pairs", "counts", "roads"}
    assert found["equal"] is True
    assert (len(found["counts"]), {type(n) for n in found["counts"]}) == (120, {int})
    assert set(found["roads"]) == set(ROADS)
    for road in found["roads"].values():
        assert set(road) >= {"pairs", "bytes_received", "bytes_origin", "seconds"}
        assert road["pairs"] == found["pairs"] > 0
        assert type(road["bytes_received"]) is type(road["bytes_origin"]) is int
        assert road["seconds"] > 0
    assert found["roads"]["warm"]["bytes_origin"] == 0
    image = (tmp_path / "out.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", image[16:24])
    assert min(width, height) >= 400
    assert shared.ask("GET", "/health", None).status_code == 200


def test_a_result_that_cannot_be_written_is_refused_before_the_work(said, tmp_path):
    for option in ("--json", "--plot"):
        code, out, err = said("demo", "--home", tmp_path / "home", option, tmp_path / "none" / "file")
        assert (code, out) == (64, "")
        assert str(tmp_path / "none") in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "home").exists()


def test_the_address_where_a_request_is_told_about_leads_there(shared, results):
    admin = shared.admin()
    found = shared.ask("GET", "/servicex/transformation", admin).json()["requests"]
    assert found
    for record in found:
        told = shared.ask("GET", record["log-url"].removeprefix(shared.run["https"]), admin)
        assert told.status_code == 200
        assert told.headers["content-type"].startswith("text/html")
        assert record["request_id"] in told.text
