"""The wire of column delivery as ServiceX's clients use it, against a whole running system."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from tests.conftest import System

ZMUMU = Path(__file__).parents[2] / "data/uproot-Zmumu.root"
COLUMNS = "(dict (list 'pt') (list (attr e 'pt1')))"
SELECTION = f"(call Select (call EventDataset 'f' 'events') (lambda (list e) {COLUMNS}))"
ROOT = "/servicex/transformation"


@pytest.fixture(scope="module")
def system(shared: System) -> System:
    shared.put("/site/wire/z.root", ZMUMU.read_bytes())
    return shared


def url(system: System, name: str = "z") -> str:
    return f"{system.run['https']}/site/wire/{name}.root"


def body(system: System, *names: str, **more: Any) -> dict[str, Any]:
    asked = {"selection": SELECTION, "file-list": [url(system, n) for n in names or ("z",)]}
    asked |= {"codegen": "uproot", "result-format": "parquet", "result-destination": "object-store"}
    return asked | more


def submit(system: System, *names: str, wait: str = "", **more: Any) -> str:
    answer = system.ask("POST", f"{ROOT}?wait={wait}", json=body(system, *names, **more))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["request_id"])


def record(system: System, id_: str) -> dict[str, Any]:
    answer = system.ask("GET", f"{ROOT}/{id_}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ended(system: System, id_: str) -> dict[str, Any]:
    while (found := record(system, id_))["status"] in {"Submitted", "Running"}:
        pass  # each look waits at the server
    return found


@pytest.fixture(scope="module")
def done(system: System) -> dict[str, Any]:
    return ended(system, submit(system, title="done"))


def test_records_have_every_key_that_the_client_needs_in_its_type(system, done):
    models = pytest.importorskip("servicex.models")
    parsed = models.TransformStatus(**done)
    assert (parsed.status.value, parsed.files, parsed.files_completed) == ("Complete", 1, 1)
    assert isinstance(done["did_id"], int)
    for key in ("request_id", "did", "selection", "image", "generated-code-cm", "app-version", "log-url"):
        assert isinstance(done[key], str)
    listed = system.ask("GET", ROOT).json()["requests"]
    assert all("minio-endpoint" not in one for one in listed)
    assert done["request_id"] in [models.TransformStatus(**one).request_id for one in listed]
    assert models.ServiceXInfo(**system.ask("GET", "/servicex").json()).code_gen_image["uproot"]


def test_what_the_server_does_not_know_in_a_submission_is_ignored(system):
    more = {"workers": 3, "tree-name": "x", "image": "y", "chunk-size": 1, "client-version": "9", "new": {}}
    assert ended(system, submit(system, **more))["status"] == "Complete"


def test_a_small_request_has_ended_when_its_submission_is_answered(system, done):
    id_ = submit(system)  # the same question: its result is only copied
    assert system.ask("GET", f"{ROOT}/{id_}/status?wait=0").json()["status"] == "Complete"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"did": "rucio://a:b"}, "either did or file-list"),
        ({"file-list": None}, "file-list"),
        ({"codegen": "cpp"}, "cpp"),
        ({"result-format": "arrow"}, "result-format"),
        (
            {"result-destination": "volume"},
            "'volume' is not offered here, no folder is configured for it; ask for",
        ),
        ({"selection": "(call Select"}, ""),
        ({"selection": 3}, "selection"),
        ({"title": "x" * 10241}, "title"),
        ({"selection": SELECTION.replace("pt1", "ptt1")}, "pt1"),
    ],
)
def test_a_bad_submission_is_a_400_whose_message_says_what_is_wrong(system, wrong, said):
    answer = system.ask("POST", ROOT, json=body(system) | wrong)
    assert answer.status_code == 400
    assert said in answer.json()["message"]


@pytest.mark.parametrize("path", [ROOT, "/api/v1/datasets/d"])
def test_a_body_of_very_many_values_is_refused_unread(system, path):
    method = "POST" if path == ROOT else "PUT"
    answer = system.ask(method, path, content=b'{"files":[' + b"[]," * 1_500_000 + b"1]}")
    assert (answer.status_code, "at most 1500000 values" in answer.text) == (413, True)


def test_looking_never_answers_400_and_always_with_a_message(system, done):
    id_ = done["request_id"]
    for path in ("/servicex", ROOT, f"{ROOT}/{id_}", f"{ROOT}/{id_}/status", f"{ROOT}/{id_}/results"):
        for header in (None, "Bearer None", "Bearer", "Bearer a b", "Basic eA==", "Bearer " + "x" * 5000):
            headers = {"Authorization": header} if header else {}
            answer = system.ask("GET", path, token=None, headers=headers)
            assert (answer.status_code, bool(answer.json()["message"])) == (401, True), header
    for id_ in (str(uuid.uuid4()), "x", "%20", "a" * 3000):
        for tail in ("", "/status", "/results", "/status?wait=no&details=perhaps"):
            answer = system.ask("GET", f"{ROOT}/{id_}{tail}")
            assert (answer.status_code, bool(answer.json()["message"])) == (404, True)


def test_other_people_see_nothing_of_a_request(system, done):
    id_, other = done["request_id"], system.token(subject="bob")
    for method, tail in (
        ("GET", ""), ("GET", "/status"), ("GET", "/results"), ("GET", "/events"), ("GET", "/cancel"),
        ("POST", "/cancel"), ("DELETE", ""),
    ):  # fmt: skip
        assert system.ask(method, f"{ROOT}/{id_}{tail}", other).status_code == 404
    asked = {"request_id": id_, "file_list": []}
    assert system.ask("POST", f"{ROOT}/file-urls", other, json=asked).status_code == 404
    assert id_ not in system.ask("GET", ROOT, other).text
    assert system.ask("GET", f"/requests/{id_}?authz={other}", None).status_code == 404
    assert system.ask("GET", f"/requests/{id_}", other).status_code == 404


def test_paths_may_hold_two_slashes_and_nothing_is_redirected(system, done):
    id_ = done["request_id"]
    status, text = system.raw("GET", f"//servicex/transformation//{id_}")
    assert (status, json.loads(text)["request_id"]) == (200, id_)
    page = system.ask("GET", f"/transformation-request//{id_}/results?status=failure")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert system.ask("GET", f"{ROOT}/").json()["requests"]


def test_results_appear_once_in_the_order_of_their_times(system, done):
    id_ = done["request_id"]
    path = f"{ROOT}/{id_}/results"
    (row,) = system.ask("GET", path, params={"later_than": "0001-01-01T00:00:00+00:00"}).json()["results"]
    assert not {"Z", "+"} & set(row["created_at"])
    assert row["transform_status"] == "success"
    for same in (row["created_at"], row["created_at"] + "+00:00"):
        assert system.ask("GET", path, params={"later_than": same}).json() == {"results": []}
    assert system.ask("GET", f"{path}?later_than={row['created_at']}%2B00:00").json() == {"results": []}


def test_the_status_has_sums_and_on_demand_the_files(system, done):
    id_ = done["request_id"]
    found = system.ask("GET", f"{ROOT}/{id_}/status").json()
    assert found["stats"]["total-events"] == 2304
    assert "details" not in found
    (row,) = system.ask("GET", f"{ROOT}/{id_}/status?details=true").json()["details"]
    assert row["file-path"] == url(system)


def test_the_keys_of_a_request_read_its_bucket_and_end_with_it(system, done):
    boto3 = pytest.importorskip("boto3")
    from botocore.config import Config
    from botocore.exceptions import ClientError

    id_ = submit(system)
    first = system.ask("GET", f"{ROOT}/{id_}").json()
    ended(system, id_)
    assert first["minio-secured"]

    def store(found: dict[str, Any]) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=f"https://{found['minio-endpoint']}",
            aws_access_key_id=found["minio-access-key"],
            aws_secret_access_key=found["minio-secret-key"],
            region_name="us-east-1",
            verify=system.run["ca_file"],
            config=Config(retries={"max_attempts": 1}),
        )

    s3 = store(first)
    (entry,) = s3.list_objects_v2(Bucket=id_)["Contents"]
    (row,) = system.ask("GET", f"{ROOT}/{id_}/results").json()["results"]
    assert (entry["Key"], entry["Size"]) == (row["s3-object-name"], row["total-bytes"])
    assert s3.head_object(Bucket=id_, Key=entry["Key"])["ContentLength"] == entry["Size"]
    assert s3.get_object(Bucket=id_, Key=entry["Key"], Range="bytes=0-3")["Body"].read() == b"PAR1"
    for act in (
        lambda: s3.list_objects_v2(Bucket=done["request_id"]),
        lambda: s3.put_object(Bucket=id_, Key="x", Body=b"x"),
        lambda: s3.delete_object(Bucket=id_, Key=entry["Key"]),
        lambda: s3.list_objects_v2(Bucket="site"),
    ):
        with pytest.raises(ClientError) as refused:
            act()
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] in {403, 404, 405}
    assert system.ask("DELETE", f"{ROOT}/{id_}").status_code == 200
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3.list_objects_v2(Bucket=id_)
    assert system.ask("GET", f"{ROOT}/{id_}").status_code == 404


def fetched(http: httpx.Client, uri: list[Any]) -> bytes:
    """As the next client fetches: no range, no redirect, the headers given, no look at the status."""
    address, headers, expires = uri
    assert expires > time.time()
    with http.stream("GET", address, headers=headers) as answer:
        assert "content-encoding" not in answer.headers
        size = int(answer.headers["content-length"])
        data = b"".join(answer.iter_raw())
    assert len(data) == size
    return data


@pytest.mark.parametrize("scheme", ["https", "url"])
def test_file_urls_work_by_themselves_by_the_scheme_one_came_with(system, done, scheme, tmp_path):
    id_ = done["request_id"]
    (row,) = system.ask("GET", f"{ROOT}/{id_}/results").json()["results"]
    name = row["s3-object-name"]
    with httpx.Client(base_url=system.run[scheme], verify=system.access.tls()) as http:
        headers = {"Authorization": f"Bearer {system.token()}"}
        asked = {"request_id": id_, "file_list": [name], "scheme": "http"}
        found = http.post(f"{ROOT}/file-urls", json=asked, headers=headers).json()["uris"]
        assert list(found) == [name]
        data = fetched(http, found[name])
        assert len(data) == row["total-bytes"]
        (tmp_path / "z.parquet").write_bytes(data)
        assert pq.read_table(tmp_path / "z.parquet").num_rows == 2304
        assert http.head(found[name][0]).headers["content-length"] == str(row["total-bytes"])
        wrong = asked | {"file_list": ["no such"]}
        assert http.post(f"{ROOT}/file-urls", json=wrong, headers=headers).status_code == 404
        wrong = asked | {"request_id": str(uuid.uuid4())}
        assert http.post(f"{ROOT}/file-urls", json=wrong, headers=headers).status_code == 404


def test_file_urls_of_the_scheme_xrootd_open_at_the_root_door(system, done):
    from doma.columns.remote import open_bytes

    id_ = done["request_id"]
    (row,) = system.ask("GET", f"{ROOT}/{id_}/results").json()["results"]
    asked = {"request_id": id_, "file_list": [row["s3-object-name"]], "scheme": "xrootd"}
    ((address, _, _),) = system.ask("POST", f"{ROOT}/file-urls", json=asked).json()["uris"].values()
    assert address.startswith("root://")
    origin = "root://" + system.run["https"].partition("://")[2]
    data = open_bytes(address, ca_file=system.run["ca_file"], allow=(origin,))
    try:
        assert data.size == row["total-bytes"]
    finally:
        data.close()


def test_a_running_request_is_stopped_before_it_is_removed(system):
    names = [f"many{i}" for i in range(40)]
    id_ = submit(system, *names, wait="0")
    refused = system.ask("DELETE", f"{ROOT}/{id_}")
    if refused.status_code == 400:  # else all of its missing files had failed by then
        assert "cancel" in refused.json()["message"]
        assert system.ask("GET", f"{ROOT}/{id_}/cancel").json()["message"]
        assert record(system, id_)["status"] == "Canceled"
        assert system.ask("POST", f"{ROOT}/{id_}/cancel").status_code == 400
        assert system.ask("DELETE", f"{ROOT}/{id_}").status_code == 200
    assert system.ask("GET", f"{ROOT}/{id_}").status_code == 404
    assert system.ask("POST", f"{ROOT}/cancel-all").json()["canceled"] == []


def test_progress_streams_to_its_owner_until_the_end(system):
    id_ = submit(system, "z", "gone", wait="0", selection=SELECTION.replace("pt1", "pt2"))
    states = []
    with httpx.Client(base_url=system.run["https"], verify=system.access.tls(), timeout=60) as http:
        headers = {"Authorization": f"Bearer {system.token()}"}
        with http.stream("GET", f"{ROOT}/{id_}/events", headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    states.append(json.loads(line.removeprefix("data: ")))
    last = states[-1]
    assert (last["status"], last["files"], last["completed"], last["failed"]) == ("Complete", 2, 1, 1)
    assert last["passed"] == last["entries"] == 2304
    assert last["bytes"] > 0


def test_the_page_of_a_request_escapes_what_others_wrote_and_gives_reasons(system):
    id_ = submit(system, "z", "gone", title="<script>alert(1)</script> & more")
    ended(system, id_)
    page = system.ask("GET", f"/requests/{id_}", None).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "404" in page
    assert "data-final" in page
    failed = system.ask("GET", f"/transformation-request/{id_}/results?status=failure", None).text
    assert "gone.root" in failed
    assert "z.root<" not in failed.partition("<tbody>")[2].replace("\n", "<")
    assert id_ in system.ask("GET", f"/requests?authz={system.token()}", None).text
    assert id_ not in system.ask("GET", f"/requests?authz={system.token(subject='bob')}", None).text


def test_a_form_of_another_page_cancels_nothing(system):
    id_ = submit(system, *[f"slow{i}" for i in range(40)], wait="0")
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert system.ask("POST", f"/requests/{id_}/cancel", None, headers=headers).status_code == 403
    own = {"Origin": "null", "Sec-Fetch-Site": "same-origin"}  # of a page that gives no referrer
    answer = system.ask("POST", f"/requests/{id_}/cancel", None, headers=own)
    assert (answer.status_code, answer.headers["location"]) == (303, f"../{id_}")
    assert ended(system, id_)["status"] in {"Canceled", "Fatal"}


def token_of(system: System, path: str, token: str, **body: Any) -> httpx.Response:
    return system.ask("POST", path, token, json=body or None)


def test_a_refresh_token_is_made_by_its_user_narrowed_and_revoked(system):
    offline = system.token("storage.read:/wire offline_access", subject="carol")
    made = token_of(system, "/token/servicex", offline, scope="storage.read:/wire")
    assert made.status_code == 200, made.text
    refresh = made.json()["refresh_token"]
    for _ in range(2):  # it stays the same
        access = token_of(system, "/token/refresh", refresh).json()["access_token"]
        assert system.ask("GET", "/servicex", access).status_code == 200
        assert system.ask("GET", "/site/wire/z.root", access).status_code == 200
        assert system.ask("GET", "/site/elsewhere", access).status_code == 403
    assert token_of(system, "/token/refresh", access).json()["access_token"] == access
    assert token_of(system, "/token/revoke", refresh).status_code == 200
    for bad in (refresh, "None", "x", refresh[:-3] + "AAA"):
        refused = token_of(system, "/token/refresh", bad)
        assert (refused.status_code, bool(refused.json()["message"])) == (401, True)


@pytest.mark.parametrize(
    ("scope", "asked"),
    [
        ("storage.read:/wire", {}),
        ("storage.read:/wire offline_access", {"subject": "admin"}),
        ("storage.read:/wire offline_access", {"scope": "storage.read:/"}),
        ("storage.read:/wire offline_access", {"scope": "doma.admin"}),
        ("storage.modify:/ offline_access", {}),
    ],
)
def test_no_refresh_token_gives_more_than_there_was(system, scope, asked):
    refused = system.ask("POST", "/token/servicex", system.token(scope, subject="carol"), json=asked)
    assert refused.status_code in {400, 401, 403}, refused.text


def test_without_single_user_mode_nobody_comes_without_a_token(system):
    with httpx.Client(base_url=system.run["url"]) as http:
        assert http.get("/servicex").status_code == 401
        assert http.post(ROOT, json=body(system)).status_code == 401
        assert http.post("/token/refresh").status_code == 401
