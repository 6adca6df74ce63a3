"""Data identifiers from the outside: looked up, delivered, shown, marked stale; by the real system."""

import json
import time

import numpy as np
import pytest
import uproot
from typer.testing import CliRunner

from doma.cli.command import app
from doma.core.errors import NotFound

COUNT = "(call Count (call EventDataset 'x' 'Events'))"


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """Three small files in ``/site/ds``."""
    for i in range(3):
        path = tmp_path_factory.mktemp("ds") / "f.root"
        with uproot.recreate(path) as file:
            file.mktree("Events", {"x": np.int64}).extend({"x": np.arange(10 + i)})
        shared.put(f"/site/ds/{i}.root", path.read_bytes())
    return f"{shared.run['https']}/site/ds"


def submit(system, did, token=""):
    body = {"did": did, "selection": COUNT, "codegen": "uproot", "result-format": "parquet",
            "result-destination": "object-store"}  # fmt: skip
    return system.ask("POST", "/servicex/transformation", token, json=body)


def finished(system, did, token=""):
    answer = submit(system, did, token)
    assert answer.status_code == 200, answer.text
    id_ = answer.json()["request_id"]
    ends = time.monotonic() + 60
    while True:
        found = system.ask("GET", f"/servicex/transformation/{id_}", token).json()
        if found["finish-time"] != "None":
            return found
        assert time.monotonic() < ends, found


def rows(system, found):
    listed = system.ask("GET", f"/servicex/transformation/{found['request_id']}/results").json()["results"]
    return {r["file-path"]: r for r in listed}


def root(url):
    return url.replace("https://", "root://").replace("/site", "//site", 1)


def test_a_dataset_of_the_catalogue_is_delivered_and_shown_as_clients_read_it(shared, folder):
    files = [{"replicas": [f"{folder}/{i}.root"], "bytes": 7, "events": 10 + i} for i in range(2)]
    made = shared.ask("PUT", "/api/v1/datasets/mine/zmumu", json={"files": files})
    assert made.status_code == 200, made.text
    told = made.json()
    assert (told["name"], told["shared"], told["mine"]) == ("mine/zmumu", False, True)
    assert (told["files"], told["bytes"], told["events"]) == (2, 14, 21)
    found = finished(shared, "doma://mine/zmumu")
    assert (found["status"], found["files"], found["files-completed"]) == ("Complete", 2, 2)
    assert found["did"] == "doma://mine/zmumu"
    from servicex.models import CachedDataset  # type: ignore[import-untyped]

    shown = CachedDataset(**shared.ask("GET", f"/servicex/datasets/{found['did_id']}").json())
    assert (shown.n_files, shown.events, shown.lookup_status) == (2, 21, "complete")
    assert [f.paths for f in shown.files] == [f"{folder}/{i}.root" for i in range(2)]
    listed = shared.ask("GET", "/servicex/datasets?did-finder=doma").json()["datasets"]
    assert found["did_id"] in [d["id"] for d in listed]
    other = shared.token("storage.read:/", subject="bob")
    assert shared.ask("GET", f"/servicex/datasets/{found['did_id']}", other).status_code == 404
    assert finished(shared, "doma://mine/zmumu", other)["status"] == "Bad Dataset"


def test_a_pattern_at_a_root_server_gives_the_same_files_every_time(shared, folder):
    found = finished(shared, f"xrootd://{root(folder)}/*.root?files=2")
    assert (found["status"], found["files-completed"]) == ("Complete", 2), found
    assert sorted(rows(shared, found)) == [f"{root(folder)}/{i}.root" for i in range(2)]
    results = rows(shared, found).values()
    assert all(r["transform_status"] == "success" for r in results)


def test_what_does_not_exist_is_a_bad_dataset_with_the_clients_word_for_it(shared, folder):
    for did, word in {
        "doma://nothing/here": "does_not_exist",
        f"xrootd://{root(folder)}/no/such/*.root": "does_not_exist",
        "doma://.bad name": "bad_name",
        "cernopendata://abc": "bad_name",
    }.items():
        found = finished(shared, did)
        assert found["status"] == "Bad Dataset", did
        shown = shared.ask("GET", f"/servicex/datasets/{found['did_id']}").json()
        assert shown["lookup_status"] == word, did
        assert found["failure-info"]


def test_an_unknown_scheme_is_refused_with_those_that_are_offered(shared):
    refused = submit(shared, "rucio://scope:name")
    assert refused.status_code == 400
    assert "offered: doma://, xrootd://, cernopendata://" in refused.text


def test_an_empty_dataset_is_complete_without_files(shared):
    shared.ask("PUT", "/api/v1/datasets/empty", json={})
    found = finished(shared, "doma://empty")
    assert (found["status"], found["files"]) == ("Complete", 0)


def test_a_stale_dataset_is_looked_up_anew_and_listed_only_when_asked_for(shared, folder):
    one = {"files": [{"replicas": [f"{folder}/0.root"]}]}
    shared.ask("PUT", "/api/v1/datasets/grows", json=one)
    first = finished(shared, "doma://grows")["did_id"]
    assert finished(shared, "doma://grows")["did_id"] == first
    gone = shared.ask("DELETE", f"/servicex/datasets/{first}")
    assert (gone.status_code, gone.json()) == (200, {"dataset-id": first, "stale": True})
    assert shared.ask("DELETE", f"/servicex/datasets/{first}").status_code == 400
    assert finished(shared, "doma://grows")["did_id"] != first
    plain = [d["id"] for d in shared.ask("GET", "/servicex/datasets").json()["datasets"]]
    every = [d["id"] for d in shared.ask("GET", "/servicex/datasets?show-deleted=true").json()["datasets"]]
    assert (first in plain, first in every) == (False, True)


def test_the_second_replica_is_read_where_the_first_is_gone(shared, folder):
    files = [{"replicas": [f"{folder}/gone.root", f"{root(folder)}/0.root"]}]
    shared.ask("PUT", "/api/v1/datasets/moved", json={"files": files})
    found = finished(shared, "doma://moved")
    assert (found["status"], found["files-completed"]) == ("Complete", 1)
    (row,) = rows(shared, found).values()
    assert row["total-events"] == 1


def test_the_same_question_by_somebody_else_reads_no_byte_of_the_inputs(shared, folder):
    did = f"xrootd://{root(folder)}/*.root"
    first = rows(shared, finished(shared, did)).values()
    other = shared.token("storage.read:/", subject="carol")
    again = finished(shared, did, other)
    listed = shared.ask("GET", f"/servicex/transformation/{again['request_id']}/results", other).json()[
        "results"
    ]
    assert [r["input-bytes"] for r in listed] == [0, 0, 0]
    assert sorted(r["total-bytes"] for r in listed) == sorted(r["total-bytes"] for r in first)


def test_a_file_list_is_a_dataset_too(shared, folder):
    body = {"file-list": [f"{folder}/0.root"], "selection": COUNT, "codegen": "uproot"}
    id_ = shared.ask("POST", "/servicex/transformation", json=body).json()["request_id"]
    found = shared.ask("GET", f"/servicex/transformation/{id_}").json()
    shown = shared.ask("GET", f"/servicex/datasets/{found['did_id']}").json()
    assert (shown["did_finder"], shown["n_files"], shown["name"]) == ("user", 1, found["did"])


def test_bad_entries_are_refused(shared):
    for body in (
        {"files": [{"replicas": ["ftp://a/b"]}]}, {"files": [{"replicas": []}]}, {"files": 3}, {"more": 1},
        {"files": [{"replicas": ["https://a/b"], "adler32": "zz"}]}, [], {"files": [{"replicas": ["file:///etc/passwd"]}]},
    ):  # fmt: skip
        answer = shared.ask("PUT", "/api/v1/datasets/bad", json=body)
        assert answer.status_code == 400, body
    assert shared.ask("PUT", "/api/v1/datasets/a%00b", json={}).status_code == 400
    assert shared.ask("DELETE", "/api/v1/datasets/none").status_code == 404


def test_the_command_keeps_the_catalogue(shared, folder, tmp_path):
    def run(*words):
        return CliRunner().invoke(app, ["dataset", *words, "--home", str(shared.home.path)])

    def said(*words):
        done = run(*words)
        assert done.exit_code == 0, done.exception
        return done.stdout

    table = tmp_path / "files.csv"
    table.write_text(f"url,events,size\n{folder}/0.root,10,77\n{folder}/1.root,11,\n")
    said("import", str(table), "--name", "by/hand", "--shared")
    said("add", "by/hand", f"{folder}/gone.root,{folder}/2.root")
    entry = json.loads(said("show", "by/hand", "--json"))
    assert sorted(len(f["replicas"]) for f in entry["files"]) == [1, 1, 2]
    (mine,) = [d for d in json.loads(said("ls", "--json")) if d["name"] == "by/hand"]
    assert (mine["files"], mine["events"], mine["bytes"], mine["shared"]) == (3, 21, 77, True)
    assert "doma://by/hand" in said("ls")
    found = finished(shared, "doma://by/hand")  # ada's: shared with her
    assert (found["status"], found["files-completed"]) == ("Complete", 3)
    said("rm", "doma://by/hand")
    assert finished(shared, "doma://by/hand")["status"] == "Bad Dataset"
    assert isinstance(run("show", "by/hand").exception, NotFound)
    # what the command's own user looked up
    admin = shared.admin()
    number = str(finished(shared, f"xrootd://{root(folder)}/0.root", admin)["did_id"])
    assert json.loads(said("show", number, "--json"))["n_files"] == 1
    said("stale", number)
    assert number not in said("ls", "--looked-up").split()
    assert int(number) in [d["id"] for d in json.loads(said("ls", "--stale", "--json"))]
