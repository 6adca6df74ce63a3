"""``doma columns`` against a running system."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import System

ZMUMU = Path(__file__).parents[2] / "data/uproot-Zmumu.root"
QUERY = "EventDataset('f', 'events').Where(lambda e: e.M > 80).Select(lambda e: {'pt': e.pt1, 'M': e.M})"


@pytest.fixture(scope="module")
def system(shared: System) -> System:
    shared.put("/site/command/z.root", ZMUMU.read_bytes())
    return shared


def url(system: System, name: str = "z") -> str:
    return f"{system.run['https']}/site/command/{name}.root"


@pytest.fixture
def columns(said, system):
    return lambda verb, *words: said("columns", verb, *words, "--home", system.home.path)


def test_results_are_brought_and_their_paths_printed(columns, system, tmp_path):
    (tmp_path / "query.txt").write_text(QUERY)
    code, out, err = columns("deliver", f"@{tmp_path / 'query.txt'}", url(system), "--out", tmp_path / "got")
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    table = pq.read_table(line)
    assert table.column_names == ["pt", "M"]
    assert min(table["M"].to_pylist()) > 80
    assert [str(p) for p in (tmp_path / "got").iterdir()] == [line]


def test_a_partly_failed_request_brings_what_there_is_and_exits_75(columns, system, tmp_path):
    (tmp_path / "list").write_text(f"{url(system)}\n{url(system, 'gone')}\n")
    code, out, err = columns(
        "deliver", QUERY, "--from", tmp_path / "list", "--out", tmp_path, "--json", "--title", "[/bold] half"
    )
    found = json.loads(out)
    assert (code, found["status"], len(found["files"]), len(found["failed"])) == (75, "Complete", 1, 1)
    assert "gone.root" in found["failed"][0]["source"]
    assert "doma columns logs" in err
    code, out, _ = columns("logs", found["request_id"])
    assert code == 0
    assert "gone.root: failure" in out
    code, out, _ = columns("show", found["request_id"])
    assert (code, "[/bold] half" in out, "1 of 2, 1 failed" in out) == (0, True, True)
    assert "[/bold] half" in columns("ls")[1]
    assert columns("cancel", found["request_id"])[0] == 64
    assert columns("rm", found["request_id"])[0] == 0
    assert columns("show", found["request_id"])[0] == 66


@pytest.mark.parametrize(
    ("query", "code", "told"),
    [
        (QUERY.replace("e.M >", "e.Mass >"), 65, "Mass"),
        ("EventDataset('f').Select(lambda e:", 65, "neither qastle nor"),
        ("(call Select", 65, ""),
        ("@no-such-file", 78, "no-such-file"),
    ],
)
def test_a_query_that_is_wrong_is_one_line_and_an_exit_code(columns, system, query, code, told):
    found, out, err = columns("deliver", query, url(system))
    assert (found, out) == (code, "")
    (line,) = err.splitlines()
    assert told in line


def test_all_failed_files_are_an_error(columns, system, tmp_path):
    code, out, err = columns("deliver", QUERY, url(system, "gone"), "--out", tmp_path / "got")
    assert (code, out) == (65, "")
    assert "gone.root" in err
    assert not (tmp_path / "got").exists()


def test_inputs_are_files_or_a_dataset(columns, system):
    assert columns("deliver", QUERY)[0] == 64
    assert columns("deliver", QUERY, url(system), "--did", "rucio://a:b")[0] == 64


def test_what_runs_is_listed_and_stopped(columns, system):
    urls = [url(system, f"none{i}") for i in range(40)]
    code, out, _ = columns("deliver", QUERY, *urls, "--no-wait")
    assert code == 0
    stopped = json.loads(columns("cancel", "--all", "--json")[1])["canceled"]
    (one,) = [r for r in json.loads(columns("ls", "--json")[1]) if r["request_id"] == out.strip()]
    assert (one["status"] == "Canceled") == (out.strip() in stopped)
    assert "uproot" in columns("codegens")[1].split()


def test_a_login_writes_what_the_client_reads_and_a_logout_ends_it(columns, system, tmp_path):
    file = tmp_path / "servicex.yaml"
    code, out, _ = columns("login", "--write", file, "--subject", "ada", "--lifetime", "2h")
    assert (code, out.strip()) == (0, str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert f"endpoint: {system.run['url']}\n" in text
    token = text.partition("token: ")[2].split()[0]
    assert system.ask("POST", "/token/refresh", token).status_code == 200
    assert columns("logout", file)[0] == 0
    assert system.ask("POST", "/token/refresh", token).status_code == 401
