"""What the parts of the root:// door share: paths, errors as they are said, handles, the window."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.auth.gate import Gate
from doma.core.errors import Conflict, DomaError, NotFound, TooManyRequests, Unauthenticated
from doma.doors.endpoint import Endpoint
from doma.doors.root_call import MOST_FILES, MOST_PATH, Session, Target, said, split
from doma.doors.root_window import Window
from doma.net.xroot_errors import IS_DIRECTORY, code_of, refusal
from doma.net.xroot_frames import Status, number_and_text
from doma.store.memory import MemoryStore

TARGET = Target(Endpoint("site", MemoryStore(), Gate({})), "/a/b", "/site/a/b", None, {})


def session():
    return Session(bytes(16), 1, "127.0.0.1", ("127.0.0.1", 1094), tls=False)


@pytest.mark.parametrize(
    ("raw", "path", "cgi", "secret"),
    [
        (b"/a//b/\0rest", "/a/b", {}, ""),
        (b"/a?x=1&authz=Bearer%20t&y=%2F", "/a", {"x": "1", "y": "/"}, "authz=Bearer%20t"),
        (b"/a?authz=t?xrd.n=2", "/a", {"xrd.n": "2"}, "authz=t"),
        (b"/a?&&access_token=t&", "/a", {}, "access_token=t"),
        ("/é b#%41".encode(), "/é b#%41", {}, ""),
    ],
)
def test_a_path_is_parted_from_its_cgi_and_its_token(raw, path, cgi, secret):
    assert split(raw) == (path, cgi, secret)


@pytest.mark.parametrize(
    "raw", [b"", b"a", b"/../x", b"/\xff", b"/x?\xff", b"/" + bytes([65]) * (MOST_PATH + 1)]
)
def test_what_is_no_path_is_refused(raw):
    with pytest.raises(DomaError) as caught:
        split(raw)
    assert caught.value.http in {400, 414}


@given(st.binary(max_size=300))
def test_any_bytes_are_a_path_or_a_clear_error(raw):
    try:
        path, cgi, _ = split(raw)
    except DomaError as e:
        http = e.http
    else:
        http = 400
        assert path.startswith("/")
        assert not {"authz", "access_token"} & cgi.keys()
    assert http in {400, 414}


@pytest.mark.parametrize(
    ("error", "status", "number"),
    [
        (NotFound("/a/b: no such file"), Status.ERROR, 3011),
        (refusal(IS_DIRECTORY, "/a/b: is a directory"), Status.ERROR, 3016),
        (Conflict("/a/b: it is open", xrootd=3018), Status.ERROR, 3018),
        (TooManyRequests("/a/b: busy", retry_after=7), Status.WAIT, 7),
        (TooManyRequests("/a/b: busy", retry_after=4000), Status.WAIT, 60),
        (TooManyRequests("/a/b: busy", retry_after=0.2), Status.WAIT, 1),
        (TooManyRequests("/a/b: busy"), Status.WAIT, 5),
    ],
)
def test_an_error_is_said_with_its_code_and_the_path_that_its_client_knows(error, status, number):
    told, body = said(error, [TARGET])
    assert (told, number_and_text(body)[0]) == (status, number)
    assert number_and_text(body)[1].startswith("/site/a/b: ")


def test_the_remedy_is_one_of_root():
    _, body = said(Unauthenticated("/x: a token is needed; send it as 'Authorization: Bearer ...'"), [])
    assert "BEARER_TOKEN_FILE" in number_and_text(body)[1]
    assert "Authorization" not in number_and_text(body)[1]


def test_every_error_of_ours_has_a_code():
    for kind in DomaError.family.values():
        assert 3000 <= code_of(kind("x: y")) <= 3035


def test_handles_are_never_given_twice_at_once():
    one = session()
    handles = [one.put(TARGET) for _ in range(MOST_FILES)]
    assert len(set(handles)) == MOST_FILES
    with pytest.raises(DomaError, match="4096"):
        one.put(TARGET)
    del one.files[handles[0]]
    one.last = 0x7FFFFFFF
    assert one.put(TARGET) == handles[0]  # it begins anew, past what is open


async def test_a_window_lets_in_what_fits_in_order():
    window, seen = Window(10), []

    async def want(size):
        await window.take(size)
        seen.append(size)

    tasks = [asyncio.create_task(want(size)) for size in (6, 4, 5, 99, 1)]
    await asyncio.sleep(0)
    assert seen == [6, 4]
    window.give(6)
    await asyncio.sleep(0)
    assert seen == [6, 4, 5]
    tasks[3].cancel()
    await asyncio.gather(*tasks[3:], return_exceptions=True)
    window.give(4)
    window.give(5)
    await asyncio.gather(*tasks[:3], tasks[4])
    assert seen == [6, 4, 5, 1]


async def test_a_window_gives_more_than_it_has_only_alone():
    window = Window(10)
    await window.take(1000)
    late = asyncio.create_task(window.take(1))
    await asyncio.sleep(0)
    assert not late.done()
    window.give(1000)
    await late
