"""curl as a user drives it: ranges, tokens, uploads, and third-party copies with every header by hand."""

import os
import re
import zlib

import pytest

from tests.clients.conftest import Said, Spot, need

pytestmark = pytest.mark.client

DATA = os.urandom(5 << 20)
ADLER = f"{zlib.adler32(DATA):08x}"


@pytest.fixture
def curl(spot: Spot):
    """Runs curl; prints head and body. ``token=None``: none is sent."""
    need("curl", package="curl")

    def run(*arguments: object, token: str | None = "") -> Said:
        bearer = [] if token is None else ["--oauth2-bearer", token or spot.grid.system.token(lifetime=3600)]
        return spot.grid.run("curl", "-sS", "-i", "--cacert", spot.grid.ca, *bearer, *arguments, token=None)

    return run


@pytest.fixture
def tpc(spot: Spot, curl):
    """A COPY by hand: status, body and last line."""

    def run(target: str, *headers: str, token: str = "", remote: str | None = "") -> tuple[int, str, str]:
        lines = list(headers)
        if remote is not None:
            lines.append(f"TransferHeader{spot.grid.bearer(remote)}")
        sent = [word for line in lines for word in ("-H", line)]
        said = curl("-X", "COPY", *sent, target, token=token)
        assert said.code == 0, said.err
        head, _, body = said.out.replace("\r\n", "\n").partition("\n\n")
        return int(head.split()[1]), body, body.rstrip("\n").rpartition("\n")[2]

    return run


def status(said: Said) -> list[int]:
    return [int(code) for code in re.findall(r"^HTTP/1.1 (\d+)", said.out, re.MULTILINE)]


def test_an_upload_waits_for_100_continue_and_reports_its_digest(spot, curl):
    said = curl("-T", spot.file("a", DATA), "-H", "Expect: 100-continue", spot.ours("a"))
    assert status(said) == [100, 201]
    assert f"adler32={ADLER}" in said.out.lower()
    assert status(curl("-T", spot.file("a", DATA), spot.ours("a")))[-1] == 204


def test_a_refused_upload_sends_no_body(spot, curl):
    weak = spot.grid.system.token("storage.read:/")
    said = curl(
        "-T",
        spot.file("a", DATA),
        "-H",
        "Expect: 100-continue",
        "-w",
        "sent %{size_upload}",
        spot.ours("a"),
        token=weak,
    )
    assert status(said) == [403]
    assert said.out.endswith("sent 0")
    assert "storage.create" in said.out or "storage.modify" in said.out


def test_ranges_single_several_and_from_the_end(spot, curl):
    url = spot.put("a", bytes(range(256)) * 4)
    assert curl("-r", "0-9", url, "-o", spot.local / "r").code == 0
    for given, wanted in (("0-3", b"\x00\x01\x02\x03"), ("-2", b"\xfe\xff"), ("1020-", b"\xfc\xfd\xfe\xff")):
        curl("-r", given, url, "--no-include", "-o", spot.local / "r")
        found = (spot.local / "r").read_bytes()
        assert found.endswith(wanted)
    said = curl("-r", "0-0,10-11,500-509", "-o", spot.local / "r", url)
    parts = (spot.local / "r").read_bytes().lower()
    assert said.code == 0
    assert parts.count(b"content-range: bytes") == 3
    assert status(curl("-r", "5000-", url)) == [416]


def test_a_checksum_sent_along_is_checked_before_the_file_shows(spot, curl):
    said = curl("-T", spot.file("a", DATA), "-H", "Digest: adler32=00000bad", spot.ours("a"))
    assert status(said)[-1] == 400
    assert spot.get("a") is None
    assert (
        status(curl("-T", spot.file("a", DATA), "-H", f"Digest: adler32={ADLER}", spot.ours("a")))[-1] == 201
    )


def test_without_a_token_the_answer_says_what_is_wanted(spot, curl):
    url = spot.put("a", b"x")
    said = curl(url, token=None)
    assert status(said) == [401]
    assert "www-authenticate: bearer" in said.out.lower()


@pytest.mark.parametrize("streams", [0, 1, 4, 200])
@pytest.mark.parametrize("side", ["ours", "other"])
def test_a_pull_reports_marks_and_ends_with_success(spot, tpc, side, streams):
    source = spot.put("a", DATA) if side == "ours" else spot.put_other("a", DATA)
    code, body, last = tpc(spot.ours("b"), f"Source: {source}", f"X-Number-Of-Streams: {streams}")
    assert code in {201, 202}, body
    assert last.lower().startswith("success"), body
    if side == "other":  # a copy inside one server opens no connection
        assert re.search(r"RemoteConnections: tcp:127\.0\.0\.1:\d+", body), body
    for word in (
        "Perf Marker",
        "Timestamp:",
        "Stripe Index:",
        "Stripe Bytes Transferred:",
        "Total Stripe Count:",
        "End",
    ):
        assert word in body, body
    assert spot.get("b") == DATA


@pytest.mark.parametrize("side", ["ours", "other"])
def test_a_push_ends_with_success(spot, tpc, side):
    source = spot.put("a", DATA)
    end = spot.ours("b") if side == "ours" else spot.other("b")
    code, body, last = tpc(source, f"Destination: {end}")
    assert code in {201, 202}, body
    assert last.lower().startswith("success"), body
    assert (spot.get("b") if side == "ours" else spot.get_other("b")) == DATA


@pytest.mark.parametrize(("active", "passive"), [("other", "ours"), ("ours", "other")])
@pytest.mark.parametrize("way", ["pull", "push"])
def test_a_wrong_token_for_the_passive_side_is_named(spot, tpc, way, active, passive):
    """Also with XRootD as the active party: it must understand our refusal."""
    put = {"ours": spot.put, "other": spot.put_other}
    url = {"ours": spot.ours, "other": spot.other}
    get = {"ours": spot.get, "other": spot.get_other}
    spot.put_other("x", b"")
    if way == "pull":
        source = put[passive]("a", DATA)
        code, body, last = tpc(url[active]("b"), f"Source: {source}", remote="not.a.token")
    else:
        source = put[active]("a", DATA)
        code, body, last = tpc(source, f"Destination: {url[passive]('b')}", remote="not.a.token")
    if active == "ours":
        assert code in {401, 403, 502} or last.startswith("failure:"), body
        said = body
        assert "403" in said or "401" in said or "refused" in said, body
        assert re.search("source|destination", said), body
    else:
        assert last.startswith("failure"), body
    holder = active if way == "pull" else passive
    assert not get[holder]("b")  # XRootD leaves an empty file behind


def test_a_missing_source_is_answered_before_the_stream(spot, tpc):
    spot.put_other("x", b"")
    code, body, _ = tpc(spot.ours("b"), f"Source: {spot.other('missing')}")
    assert code == 404, body
    assert "missing" in body
    assert spot.get("b") is None


def test_an_existing_destination_without_overwrite_is_refused_before_the_stream(spot, tpc):
    source = spot.put_other("a", DATA)
    spot.put("b", b"before")
    code, body, _ = tpc(spot.ours("b"), f"Source: {source}", "Overwrite: F")
    assert code == 412, body
    assert spot.get("b") == b"before"


def test_a_stated_digest_that_does_not_fit_publishes_nothing(spot, tpc):
    source = spot.put_other("a", DATA)
    code, body, last = tpc(spot.ours("b"), f"Source: {source}", "Digest: adler32=00000bad")
    assert code == 412 or last.startswith("failure:"), body
    assert "00000bad" in body.lower() or "0bad" in body.lower()
    assert spot.get("b") is None
    code, body, last = tpc(spot.ours("b"), f"Source: {source}", f"Digest: adler32={ADLER}")
    assert last.lower().startswith("success"), body


def test_credential_delegation_is_refused_in_words(spot, tpc):
    source = spot.put_other("a", DATA)
    code, body, _ = tpc(spot.ours("b"), f"Source: {source}", "Credential: gridsite", remote=None)
    assert code == 400
    assert "TransferHeaderAuthorization" in body
    code, body, last = tpc(spot.ours("b"), f"Source: {source}", "Credential: none")
    assert last.lower().startswith("success"), body


@pytest.mark.parametrize(
    "headers",
    [("Source: https://a.example/x", "Destination: https://b.example/x"), (), ("Source: ftp://a.example/x",)],
    ids=["both", "neither", "scheme"],
)
def test_a_copy_that_makes_no_sense_is_a_bad_request(spot, tpc, headers):
    spot.put("a", b"x")
    code, body, _ = tpc(spot.ours("a"), *headers)
    assert code in {400, 403}, body
    assert spot.get("a") == b"x"


@pytest.mark.parametrize(
    "url", ["https://169.254.169.254/latest", "https://10.1.2.3/x", "https://[fe80::1]/x"]
)
def test_addresses_that_the_policy_does_not_name_are_never_asked(spot, tpc, url):
    code, body, last = tpc(spot.ours("b"), f"Source: {url}")
    assert code == 403, (body, last)
    assert spot.get("b") is None
