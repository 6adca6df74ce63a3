"""ServiceX's own client, unmodified, delivers from this system."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import httpx
import numpy as np
import pytest
import uproot

from tests.clients.servicex_session import ZMUMU, User, refresh_token, result
from tests.conftest import Start, System

pytest.importorskip("servicex", reason="the package is: servicex")
pytestmark = pytest.mark.client

MOMENTA = "momenta()"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with two files."""
    running = System(tmp_path_factory.mktemp("servicex") / "home")
    running.up()
    for name in ("a", "b"):
        running.put(f"/site/{name}.root", ZMUMU.read_bytes())
    yield running
    assert running.down() == 0, running.log


@pytest.fixture(scope="module")
def token(system: System) -> str:
    return refresh_token(system, "--subject", "eve")


@pytest.fixture
def user(system: System, token: str, tmp_path: Path) -> User:
    return User(tmp_path / "user", system, token)


def inputs(system: System, *names: str) -> list[str]:
    return [f"{system.run['https']}/site/{name}.root" for name in names]


def expected(*names: str) -> dict[str, np.ndarray]:
    with uproot.open(ZMUMU) as file:
        found: dict[str, np.ndarray] = file["events"].arrays(names or ["pt1", "M"], library="np")
    return found


def parquet(path: str) -> ak.Array:
    return ak.from_parquet(path)


def same(found: ak.Array, names: tuple[str, ...] = ("pt1", "M"), times: int = 1) -> None:
    true = expected(*names)
    assert found.fields == list(names)
    for name in names:
        assert np.array_equal(ak.to_numpy(found[name]), np.tile(true[name], times))


def asked(user: User) -> list[dict[str, Any]]:
    """The user's requests as the server has them."""
    with httpx.Client(base_url=user.system.run["url"]) as http:
        access = http.post("/token/refresh", headers={"Authorization": f"Bearer {user.token}"}).json()
        headers = {"Authorization": f"Bearer {access['access_token']}"}
        found: list[dict[str, Any]] = http.get("/servicex/transformation", headers=headers).json()["requests"]
    return found


def test_samples_of_several_formats_and_languages_arrive_whole(user, system):
    found = user.python(
        f"""
one = dataset.FileList(arguments["one"])
raw = query.UprootRaw([{{"treename": "events", "expressions": ["pt1", "M"], "cut": "M > 80"}}])
run([
    {{"Name": "parquet", "Dataset": dataset.FileList(arguments["two"]), "Query": {MOMENTA}}},
    {{"Name": "raw", "Dataset": one, "Query": raw}},
], {{"OutputFormat": "parquet"}})
""",
        one=inputs(system, "a"),
        two=inputs(system, "a", "b"),
    )
    assert len(found["parquet"]) == 2
    for path in found["parquet"]:
        same(parquet(path))
    (raw,) = found["raw"]
    true = expected()
    kept = parquet(raw)
    assert np.array_equal(ak.to_numpy(kept.M), true["M"][true["M"] > 80])
    assert np.array_equal(ak.to_numpy(kept.pt1), true["pt1"][true["M"] > 80])


@pytest.mark.parametrize(("format_", "kind"), [("root-ttree", "TTree"), ("root-rntuple", "RNTuple")])
def test_root_files_hold_what_was_asked_for(user, system, format_, kind):
    found = user.python(
        f"""
run([{{"Name": "z", "Dataset": dataset.FileList(arguments["one"]), "Query": {MOMENTA}}}],
    {{"OutputFormat": "{format_}"}})
""",
        one=inputs(system, "a"),
    )
    (path,) = found["z"]
    with uproot.open(path) as file:
        (name,) = file.keys(cycle=False)
        assert file.classnames(cycle=False)[name].endswith(kind)
        got = file[name].arrays(["pt1", "M"], library="ak")
    for column, values in expected().items():
        assert np.array_equal(ak.to_numpy(got[column]), values)


def test_a_python_function_runs_where_a_sandbox_is(user, system):
    if "python" not in user.command("codegen", "list", "-c", str(user.config))[1]:
        pytest.skip("no sandbox here (Debian: bubblewrap)")
    source = """
def run_query(input_filenames=None):
    import uproot
    with uproot.open({input_filenames: "events"}) as tree:
        return tree.arrays(["pt1", "M"])
"""
    found = user.python(
        """
function = query.PythonFunction(arguments["source"])
run([{"Name": "z", "Dataset": dataset.FileList(arguments["one"]), "Query": function}],
    {"OutputFormat": "parquet"})
""",
        one=inputs(system, "a"),
        source=source,
    )
    assert isinstance(found["z"], list), found
    same(parquet(found["z"][0]))


def test_a_specification_in_yaml_is_delivered_by_the_clients_command(user, system):
    (user.folder / "spec.yaml").write_text(
        f"""
General:
  OutputFormat: parquet
  OutputDirectory: {user.folder / "out"}
Sample:
  - Name: z
    Dataset: !FileList {json.dumps(inputs(system, "a"))}
    Query: !FuncADL_Uproot |
      FromTree('events').Select(lambda e: {{'pt1': e.pt1, 'M': e.M}})
"""
    )
    code, said = user.command("deliver", "spec.yaml", "-c", str(user.config))
    assert code == 0, said
    (path,) = user.cache.glob("*-*/*.parquet")
    same(parquet(str(path)))
    assert list((user.folder / "out").iterdir())


def test_addresses_made_by_the_client_open_the_result_by_themselves(system, token, tmp_path):
    user = User(tmp_path / "user", system, token, secure=True)
    found = user.python(
        f"""
run([{{"Name": "z", "Dataset": dataset.FileList(arguments["one"]), "Query": {MOMENTA}}}],
    {{"OutputFormat": "parquet", "Delivery": "URLs"}})
""",
        one=inputs(system, "a"),
    )
    (url,) = found["z"]
    assert url.startswith("https://")
    with httpx.Client(verify=system.access.tls()) as http:
        whole = http.get(url)
        assert whole.status_code == 200
        (tmp_path / "z.parquet").write_bytes(whole.content)
        same(parquet(str(tmp_path / "z.parquet")))
        part = http.get(url, headers={"Range": "bytes=0-3"})
        assert (part.status_code, part.content) == (206, b"PAR1")
        assert http.get(url.replace("%3A", ":")).content == whole.content  # as uproot's aiohttp writes it
        assert http.get(url.replace("Signature=", "Signature=A")).status_code == 403


def test_files_come_over_tls_where_the_authority_is_known(system, token, tmp_path):
    user = User(tmp_path / "user", system, token, secure=True)
    found = user.python(
        f'run([{{"Name": "z", "Dataset": dataset.FileList(arguments["one"]), "Query": {MOMENTA}}}],'
        ' {"OutputFormat": "parquet"})',
        one=inputs(system, "b"),
    )
    same(parquet(found["z"][0]))


def test_a_wrong_branch_is_refused_with_the_nearest_names(user, system):
    found = user.python(
        """
try:
    run([{"Name": "z", "Dataset": dataset.FileList(arguments["one"]),
          "Query": query.FuncADL_Uproot().FromTree("events").Select(lambda e: {"x": e.ptt1})}])
except Exception as e:
    shown({"z": [f"{type(e).__name__}: {e}"]})
""",
        one=inputs(system, "a"),
    )
    said = "".join(found["z"])
    assert "ValueError" in said
    assert "ptt1" in said
    assert "pt1" in said.replace("ptt1", "")


def test_some_failed_files_shorten_the_list_and_all_failed_is_an_error(user, system):
    found = user.python(
        f"""
run([{{"Name": "some", "Dataset": dataset.FileList(arguments["some"]), "Query": {MOMENTA}}},
     {{"Name": "none", "Dataset": dataset.FileList(arguments["none"]), "Query": {MOMENTA}}}],
    {{"OutputFormat": "parquet"}})
""",
        some=inputs(system, "a", "gone"),
        none=inputs(system, "gone"),
    )
    (path,) = found["some"]
    same(parquet(path))
    assert "Fatal issue in ServiceX server" in found["none"]
    reasons = {r["title"]: r["failure-info"] for r in asked(user)}
    assert "gone.root" in reasons["some"]


def test_who_takes_what_there_is_gets_it_without_an_error(user, system):
    """``fail_if_incomplete=False``: results of some, an empty list of none, and no endless look."""
    found = user.python(
        f"""
run([{{"Name": "some", "Dataset": dataset.FileList(arguments["some"]), "Query": {MOMENTA}}},
     {{"Name": "none", "Dataset": dataset.FileList(arguments["none"]), "Query": {MOMENTA}}}],
    {{"OutputFormat": "parquet"}}, fail_if_incomplete=False)
""",
        some=inputs(system, "a", "lost"),
        none=inputs(system, "lost"),
    )
    (path,) = found["some"]
    same(parquet(path))
    assert found["none"] == []


def test_the_commands_of_the_client_list_bring_and_remove(user, system):
    found = user.python(
        f'run([{{"Name": "mine", "Dataset": dataset.FileList(arguments["one"]), "Query": {MOMENTA}}}],'
        ' {"OutputFormat": "parquet"})',
        one=inputs(system, "b"),
    )
    id_ = Path(found["mine"][0]).parent.name
    config = ("-c", str(user.config))
    assert "uproot" in user.command("codegen", "list", *config)[1]
    assert id_ in user.command("transforms", "list", *config)[1]
    code, said = user.command("transforms", "files", *config, id_)
    assert (code, "parquet" in said) == (0, True), said
    code, said = user.command("transforms", "download", *config, id_)
    assert code == 0, said
    (got,) = user.folder.glob("*.parquet")
    same(parquet(str(got)))
    assert f"/requests/{id_}" in user.command("transforms", "logs", id_)[1]
    # this release's "cancel" and "delete" do their work and fail after it, so their exit codes say nothing
    assert "Failed to cancel transform" in user.command("transforms", "cancel", *config, id_)[1]
    user.command("transforms", "delete", *config, id_)
    assert id_ not in user.command("transforms", "list", *config)[1]
    assert user.command("transforms", "files", *config, id_)[0] != 0


def test_a_client_that_died_goes_on_with_the_same_request(user, system):
    code = (
        f'run([{{"Name": "again", "Dataset": dataset.FileList(arguments["one"]), "Query": {MOMENTA}}}],'
        ' {"OutputFormat": "parquet"})'
    )
    before = len(asked(user))
    first = user.start(code, one=inputs(system, "a"))
    record = user.cache / ".servicex" / "db.json"
    while not (record.exists() and "SUBMITTED" in record.read_text()):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.kill()
    first.communicate()
    found = user.python(code, one=inputs(system, "a"))
    same(parquet(found["again"][0]))
    assert len(asked(user)) == before + 1


def test_a_token_file_that_expires_gives_way_to_the_refresh_token(system, token, tmp_path):
    file = tmp_path / "bearer"
    file.write_text(system.token("storage.read:/", subject="eve", lifetime=61))
    user = User(tmp_path / "user", system, token, extra={"BEARER_TOKEN_FILE": str(file)})
    found = user.python(
        f'run([{{"Name": "z", "Dataset": dataset.FileList(arguments["one"]), "Query": {MOMENTA}}}],'
        ' {"OutputFormat": "parquet"})',
        one=inputs(system, "a"),
    )
    same(parquet(found["z"][0]))


def test_a_token_file_alone_is_enough_and_an_expired_one_is_refused(system, tmp_path):
    file = tmp_path / "bearer"
    file.write_text(system.token("storage.read:/", subject="eve", lifetime=600))
    user = User(tmp_path / "user", system, None, extra={"BEARER_TOKEN_FILE": str(file)})
    assert user.command("codegen", "list", "-c", str(user.config))[0] == 0
    file.write_text(system.token("storage.read:/", subject="eve", lifetime=600, age=7200))
    code, said = user.command("codegen", "list", "-c", str(user.config))
    assert code != 0  # with an empty token the client does not even ask
    assert "uproot" not in said


def test_a_revoked_token_refreshes_nothing(system, tmp_path):
    token = refresh_token(system, "--subject", "mallory")
    user = User(tmp_path / "user", system, token)
    assert user.command("codegen", "list", "-c", str(user.config))[0] == 0
    httpx.post(f"{system.run['url']}/token/revoke", headers={"Authorization": f"Bearer {token}"})
    code, said = user.command("codegen", "list", "-c", str(user.config))
    assert code != 0
    assert "401" in said


def test_one_user_alone_on_the_machine_needs_no_token(start, tmp_path):
    config = tmp_path / "doma.toml"
    config.write_text("[columns]\nopen = true\nworkers = 1\n")
    system = start("home", "--config", config)
    system.put("/site/a.root", ZMUMU.read_bytes())
    user = User(tmp_path / "user", system, None)
    found = user.python(
        f'run([{{"Name": "z", "Dataset": dataset.FileList(arguments["one"]), "Query": {MOMENTA}}}],'
        ' {"OutputFormat": "parquet"})',
        one=inputs(system, "a"),
    )
    same(parquet(found["z"][0]))


SLEEPER = """
def run_query(input_filenames=None):
    import time
    import uproot
    time.sleep(SECONDS)
    with uproot.open({input_filenames: "events"}) as tree:
        return tree.arrays(["pt1", "M"])
"""
SLOWLY = """
run([{"Name": "z", "Dataset": dataset.FileList(arguments["all"]),
      "Query": query.PythonFunction(arguments["source"])}], {"OutputFormat": "parquet"})
"""


def begun(user: User, seconds: float, names: list[str]) -> "subprocess.Popen[str]":
    """A client whose submission was answered, and whose files take so long each."""
    with httpx.Client(base_url=user.system.run["url"]) as http:
        offered = http.get("/servicex", headers={"Authorization": f"Bearer {user.system.admin()}"}).json()
    if "python" not in offered["code-gen-image"]:
        pytest.skip("no sandbox here (Debian: bubblewrap)")
    for name in names:
        user.system.put(f"/site/{name}.root", ZMUMU.read_bytes())
    source = SLEEPER.replace("SECONDS", str(seconds))
    process = user.start(SLOWLY, all=inputs(user.system, *names), source=source)
    record = user.cache / ".servicex" / "db.json"
    while not (record.exists() and "SUBMITTED" in record.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


@pytest.fixture
def slow(start: Start, tmp_path: Path) -> User:
    """A user of a system that does one file at a time."""
    config = tmp_path / "doma.toml"
    config.write_text("[columns]\nworkers = 1\nlease = 3\n")
    system = start("home", "--config", config)
    return User(tmp_path / "user", system, refresh_token(system, "--subject", "eve"))


def test_a_server_killed_in_the_middle_delivers_everything_once(slow):
    names = [f"f{i}" for i in range(6)]
    process = begun(slow, 1.0, names)
    while not any(r["files-completed"] for r in asked(slow)):
        time.sleep(0.05)
    slow.system.crash()
    slow.system.up()
    found = result(process)
    assert len(set(found["z"])) == len(names), found
    for path in found["z"]:
        same(parquet(path))
    (one,) = asked(slow)
    assert (one["status"], one["files-completed"]) == ("Complete", len(names))


def test_keys_that_are_dropped_in_the_middle_cost_one_refresh(slow, command):
    process = begun(slow, 8.0, ["one"])
    assert command("keys", "rotate", "--now", "--drop", "--home", slow.system.home.path).code == 0
    found = result(process)
    assert isinstance(found["z"], list), found
    same(parquet(found["z"][0]))


def test_a_canceled_request_is_an_error_that_says_so(slow):
    process = begun(slow, 20.0, ["one"])
    (one,) = asked(slow)
    slow.command("transforms", "cancel", "-c", str(slow.config), one["request_id"])
    assert "canceled" in result(process)["z"]


def test_datasets_of_the_catalogue_and_of_a_pattern_are_delivered_shown_and_forgotten(user, system):
    access = system.token("storage.read:/", subject="eve")
    files = [{"replicas": [url], "bytes": 1, "events": 2304} for url in inputs(system, "a", "b")]
    made = system.ask("PUT", "/api/v1/datasets/eve/z", access, json={"files": files})
    assert made.status_code == 200, made.text
    root = "root://" + system.run["https"].partition("://")[2] + "//site"
    found = user.python(
        """
from servicex.dataset_identifier import DataSetIdentifier
run([
    {"Name": "named", "Dataset": DataSetIdentifier("doma", "eve/z"), "Query": momenta()},
    {"Name": "pattern", "Dataset": dataset.XRootD(arguments["pattern"]), "Query": momenta()},
    {"Name": "nothing", "Dataset": DataSetIdentifier("doma", "eve/none"), "Query": momenta()},
], {"OutputFormat": "parquet"})
""",
        pattern=f"{root}/[ab].root",
    )
    for name in ("named", "pattern"):
        assert isinstance(found[name], list), found
        assert len(found[name]) == 2
        for path in found[name]:
            same(parquet(path))
    assert "ServiceXException" in found["nothing"]
    config = ("-c", str(user.config))
    code, said = user.command("datasets", "list", *config)
    assert code == 0, said
    assert "doma://eve/z" in said
    number = str(next(r["did_id"] for r in asked(user) if r["title"] == "named"))
    assert "b.root" in user.command("datasets", "get", *config, number)[1]
    assert user.command("datasets", "delete", *config, number)[0] == 0
    assert "doma://eve/z" not in user.command("datasets", "list", *config)[1]
