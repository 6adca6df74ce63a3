"""Where tokens are found, and that they stay out of logs."""

import io
import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.auth.bearer import bearer_of, discover
from doma.auth.redact import Redactor, blanked
from doma.core.errors import BadRequest, Unauthenticated

UID = os.geteuid()
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwcyJ9.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("authorization", "query"),
    [
        (f"Bearer {JWT}", ""),
        (f"bearer {JWT}", ""),
        (f"BEARER   {JWT} ", "x=1"),
        (None, f"authz=Bearer%20{JWT}"),
        (None, f"authz=bearer+{JWT}"),
        (None, f"a=1&authz={JWT}&b=2"),
        (f"Bearer {JWT}", f"authz={JWT}"),
        ("Basic eDp5", f"authz={JWT}"),
    ],
)
def test_a_token_is_found_in_header_and_query(authorization, query):
    assert bearer_of(authorization, query) == JWT


@pytest.mark.parametrize(
    ("authorization", "query"),
    [
        (None, ""),
        ("Basic eDp5", ""),
        ("AWS4-HMAC-SHA256 x", "a=b"),
        (None, "authz="),
        (None, "xauthz=a"),
        (None, "access_token=a"),
        ("", ""),
    ],
)
def test_no_token_is_none(authorization, query):
    assert bearer_of(authorization, query) is None


def test_access_token_in_the_query_is_read_only_where_configured():
    assert bearer_of(None, f"access_token={JWT}", access_token=True) == JWT


@pytest.mark.parametrize(
    ("authorization", "query"),
    [
        ("Bearer", ""),
        ("Bearer ", ""),
        ("Bearer a b", ""),
        ("Bearer a,b", ""),
        ("Bearer é", ""),
        (None, "authz=a%20b"),
        (None, "authz=a%0Ab"),
        ("Bearer a", "authz=b"),
        (None, "authz=a&authz=b"),
    ],
)
def test_malformed_or_contradicting_credentials_are_a_bad_request(authorization, query):
    with pytest.raises(BadRequest):
        bearer_of(authorization, query)


@given(st.none() | st.text(max_size=40), st.text(max_size=40))
def test_any_header_and_query_is_read_or_refused(authorization, query):
    try:
        found = bearer_of(authorization, query + "&authz=" + query)
    except BadRequest as e:
        text = e.message
        assert text.isascii()
    else:
        assert found is None or (found and not set(found) & set(" \r\n\0"))


def write(path, text=JWT + "\n", mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_the_four_places_are_looked_at_in_order(tmp_path):
    tmp, run = tmp_path / "tmp", tmp_path / "run"
    tmp.mkdir()
    run.mkdir()
    environ = {}
    assert discover(environ, UID, tmp=tmp) is None
    write(tmp / f"bt_u{UID}", " fourth\n")
    assert discover(environ, UID, tmp=tmp) == "fourth"
    environ["XDG_RUNTIME_DIR"] = str(run)
    assert discover(environ, UID, tmp=tmp) == "fourth"
    write(run / f"bt_u{UID}", "third")
    assert discover(environ, UID, tmp=tmp) == "third"
    environ["BEARER_TOKEN_FILE"] = write(tmp_path / "file", "\tsecond\r\n")
    assert discover(environ, UID, tmp=tmp) == "second"
    environ["BEARER_TOKEN"] = " first "
    assert discover(environ, UID, tmp=tmp) == "first"


def test_a_variable_that_is_set_but_unusable_is_an_error_not_a_reason_to_go_on(tmp_path):
    write(tmp_path / f"bt_u{UID}")
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo", 0o600)
    cases = {
        "BEARER_TOKEN": ["", " ", "a b", "{}", "é"],
        "BEARER_TOKEN_FILE": [
            "",
            "\0",
            str(tmp_path / "none"),
            str(tmp_path / "dir"),
            str(tmp_path / "fifo"),
            write(tmp_path / "empty", ""),
            write(tmp_path / "two", "a\nb\n"),
            write(tmp_path / "big", "a" * (65 << 10)),
            write(tmp_path / "open", mode=0o604),
            write(tmp_path / "group", mode=0o640),
            write(tmp_path / "writable", mode=0o602),
        ],
    }
    for name, values in cases.items():
        for value in values:
            with pytest.raises(Unauthenticated):
                discover({name: value}, UID, tmp=tmp_path)


def test_a_file_of_somebody_else_or_open_to_others_is_refused(tmp_path):
    path = tmp_path / f"bt_u{UID + 1}"
    write(path)
    with pytest.raises(Unauthenticated, match=f"belongs to user {UID}, not to {UID + 1}"):
        discover({}, UID + 1, tmp=tmp_path)
    write(tmp_path / f"bt_u{UID}", mode=0o644)
    with pytest.raises(Unauthenticated, match="chmod 600"):
        discover({}, UID, tmp=tmp_path)


def test_a_link_is_followed_only_where_the_user_names_the_file(tmp_path):
    write(tmp_path / "real")
    (tmp_path / f"bt_u{UID}").symlink_to(tmp_path / "real")
    with pytest.raises(Unauthenticated):
        discover({}, UID, tmp=tmp_path)
    assert discover({"BEARER_TOKEN_FILE": str(tmp_path / f"bt_u{UID}")}, UID, tmp=tmp_path) == JWT


def test_errors_never_repeat_what_was_in_the_file(tmp_path):
    secret = write(tmp_path / "secret", "-----BEGIN KEY-----\nhush\n")
    with pytest.raises(Unauthenticated) as caught:
        discover({"BEARER_TOKEN_FILE": secret}, UID, tmp=tmp_path)
    assert "hush" not in caught.value.message


LEAKS = [
    "GET /f?X-Amz-Credential=hush&X-Amz-Expires=kept&X-Amz-Signature=hush kept",
    "GET /f?AWSAccessKeyId=kept&Signature=hush&X-Goog-Signature=hush&sig=hush",
    "/f?X-Amz-Security-Token=hush#kept",
    f"Authorization: Bearer {JWT}",
    "authorization:Basic aHVzaA==",
    f"{{'authorization': 'Bearer {JWT}', 'host': 'kept'}}",
    f"[(b'Authorization', b'Bearer {JWT}'), (b'host', b'kept')]",
    f'{{"Authorization": "Bearer {JWT}", "a": "kept"}}',
    f"TransferHeaderAuthorization: Bearer {JWT}\r\nHost: kept",
    "transferheaderx-secret: hush",
    f"GET /kept?authz=Bearer%20{JWT}&a=kept HTTP/1.1",
    f"GET /kept?a=kept&authz={JWT} HTTP/1.1",
    "POST /token grant_type=kept&client_secret=hush&refresh_token=hush",
    "https://h/kept?access_token=hush#kept",
    '{"access_token": "hush", "scope": "kept"}',
    f"got {JWT} from kept",
    "Bearer MDAyMWxvY2F0aW9uIGh1c2g for kept",
]


LEAKS += [
    "POST /vo/token grant_type=refresh_token&refresh_token=doma-rt.0f.1.hush&x=kept",
    "client_secret=hush&kept=1",
    "POST /vo/token grant_type=authorization_code&code=hush&kept=1",
    "GET /vo/device?user_code=HUSH-hush&kept=1",
    "POST /vo/device username=a&password=hush&ticket=hush",
    "POST /vo/revoke x=1&token=hush",
    "device_code=hush",
    '{"device_code": "hush", "kept": 1}',
    '{"macaroon": "hush", "uri": "kept"}',
    "GET /site/a?authz=MDAyMWxvY2F0aW9uIGh1c2g",
    "a macaroon MDAyMWxvY2F0aW9uIGh1c2g in a message is not kept",
    "refresh token doma-rt.0f8a.2.hush of somebody",
]


@pytest.mark.parametrize("text", LEAKS)
def test_no_credential_passes(text):
    clean = blanked(text)
    for secret in (JWT, "hush", "aHVzaA", "MDAyMWxvY2F0aW9uIGh1c2g", JWT.split(".")[1]):
        assert secret not in clean
    assert "***" in clean
    assert clean.count("kept") == text.count("kept")


@pytest.mark.parametrize(
    "text",
    [
        "GET /a/b?x=1 200",
        "no authorization, see docs",
        "the bearer of news",
        "token renewed",
        "basic cuts applied",
        "exit code=5, status code: 404",
        '{"code": "not-found", "status": 404}',
    ],
)
def test_harmless_text_is_left_as_it_is(text):
    assert blanked(text) == text


@pytest.fixture
def log():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(Redactor())
    logger = logging.getLogger("doma.test.redact")
    logger.addHandler(handler)
    logger.propagate = False
    yield logger, stream
    logger.removeHandler(handler)


def test_a_handler_with_the_filter_writes_no_secret_of_any_child_logger(log):
    logger, stream = log
    child = logger.getChild("child")
    child.warning("%s %s", "GET /?authz=" + JWT, {"Authorization": "Bearer hush"})
    try:
        int(f"Authorization: Bearer {JWT}")
    except ValueError:
        child.exception("failed", stack_info=True)
    child.warning("plain %d%%", 5)
    child.warning("%d", JWT)
    written = stream.getvalue()
    assert JWT not in written
    assert "hush" not in written
    assert "Traceback" in written
    assert "plain 5%" in written
    assert "does not fit" in written


def test_a_message_with_a_foreign_name_in_it_stays_on_its_line(log):
    logger, stream = log
    for text in ("a\nWARNING forged", "a\r\nforged", "\x1b[2Jforged", "a\x85forged\u2028forged", "\x9b2J\0"):
        logger.warning("name %s", text)
    written = stream.getvalue()
    assert len(written.splitlines()) == 5
    assert written.count("\n") == 5
    assert not any((c != "\n" and ord(c) < 32) or 0x7F <= ord(c) < 0xA0 for c in written)
    assert r"a\nWARNING forged" in written
