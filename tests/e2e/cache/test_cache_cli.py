"""``doma cache``: every verb against a running system, as people and as machines read it."""

import io
import json
import random
import sys

import pytest

from tests.conftest import doma

SIZE = 300_000


@pytest.fixture(scope="module")
def system(shared):
    for name in ("x/1", "x/2", "y"):
        shared.put(f"/site/cli/{name}", random.Random(name).randbytes(SIZE))
    return shared


@pytest.fixture
def cache(system, said):
    """Run a verb; what it printed as JSON."""

    def cache(*arguments, code=0):
        found, out, err = said("cache", *arguments, "--home", system.home.path, "--json")
        assert found == code, err or out
        return json.loads(out or err)

    return cache


def test_files_are_brought_listed_checked_and_given_up(system, cache):
    paths = ["/cli/x/1", "/cli/x/2", "/cli/y"]
    brought = cache("prestage", *paths)
    assert [one["status"] for one in brought["files"]] == ["success"] * 3
    assert brought["bytes"] == 3 * SIZE

    assert [one["path"] for one in cache("ls", "/cli/x")] == paths[:2]
    assert [one["path"] for one in cache("ls", "/cli", "--limit", "2", "--after", "/cli/x/1")] == paths[1:]
    assert cache("stat", "/cli/y")["files"][0]["complete"]
    sums = cache("holdings", "/cli/x/", "/cli/none")
    assert (sums["count"], sums["cached"], sums["complete"], sums["unknown"]) == (3, 2 * SIZE, 2, 1)

    pages = next((system.home / "cache/cache/objects").rglob("*.*"))
    with pages.open("r+b") as file:
        file.seek(5)
        file.write(b"\0rot\0")
    checked = cache("verify", "/cli/")
    assert (checked["files"], len(checked["damaged"]), checked["lost_pages"]) == (3, 1, 0)
    assert cache("verify", "/cli/")["damaged"] == []

    assert cache("evict", "/cli/y", "/cli/x/", "--now")[1]["objects"] == 2
    assert cache("ls", "/cli") == []
    assert cache("stat", "/cli/y", code=66)["unknown"] == 1
    assert cache("stats")["bytes"]["purged"] > 3 * SIZE


def test_pins_are_set_shown_and_taken_away(cache):
    assert cache("pin", "/cli/y", "--lifetime", "1h")[0]["size"] == SIZE
    assert [pin["path"] for pin in cache("pin")] == ["/cli/y"]
    assert cache("evict", "/cli/y", code=73)["code"] == "conflict"
    assert cache("evict", "/cli/y", "--force")[0]["immediate"]
    cache("unpin", "/cli/y")
    assert cache("pin") == []
    assert cache("unpin", "/cli/y", code=66)["code"] == "not-found"
    assert cache("purge", "--dry-run")["objects"] == []


def test_lists_of_files_come_from_a_file_or_standard_input(system, cache, said, tmp_path, monkeypatch):
    names = tmp_path / "files.txt"
    names.write_text("/cli/x/1\n\n/cli/y\n")
    assert cache("prestage", "--from", names)["bytes"] == 2 * SIZE
    monkeypatch.setattr(sys, "stdin", io.StringIO("/cli/x/1\n/cli/x/2\n/cli/y\n"))
    code, out, _ = said("cache", "holdings", "--from", "-", "--home", system.home.path)
    assert code == 0
    assert "585.9 KiB of" in out
    assert "2 of 3 files whole" in out


def test_people_see_tables(system, said):
    verbs = (["prestage", "/cli/y"], ["ls", "/cli/y"], ["stats"], ["pin"], ["purge", "--dry-run"])
    told = [said("cache", *verb, "--home", system.home.path) for verb in verbs]
    assert [code for code, _, _ in told] == [0] * 5, told
    assert "1 of 1 files are here, 293.0 KiB" in told[0][1]
    assert "100%" in told[1][1]
    assert "hit ratio" in told[2][1]


def test_failures_have_the_exit_code_of_their_error(system, cache, said, tmp_path):
    assert cache("evict", "relative", code=64)["code"] == "bad-path"
    assert cache("evict", "/cli/none", code=66)["code"] == "not-found"
    told = cache("prestage", "/cli/none", "/cli/y", code=66)
    assert told["failed"] == 1
    assert cache("ls", "--endpoint", "site", code=66)["code"] == "not-found"
    assert cache("ls", "--endpoint", "cache") != []
    assert said("cache", "ls", "--home", tmp_path)[0] == 75
    assert said("cache", "prestage", "--home", system.home.path)[0] == 64


def test_another_system_is_reached_by_its_address_and_a_token(system, said, monkeypatch):
    there = ("--url", system.run["https"], "--ca", system.run["ca_file"])
    for scope, code in (("storage.read:/cli", 0), ("storage.read:/else", 77)):
        monkeypatch.setenv("BEARER_TOKEN", system.token(scope))
        assert said("cache", "stat", "/cli/y", *there)[0] == code
    monkeypatch.setenv("BEARER_TOKEN", "not a token")
    assert said("cache", "stats", *there)[0] == 77


def test_the_real_command_says_what_it_can_do():
    assert "prestage" in doma("cache", "--help").out
