"""The headers of a COPY, its markers and its queue, without a socket."""

import asyncio
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.core.errors import BadRequest, StorageFull, TooManyRequests
from doma.doors.tpc_limits import Turns
from doma.doors.tpc_order import order_of
from doma.doors.tpc_progress import Progress, blame, last_lines

URL = "https://se.example.org:8443/a%20b/f.root?copy_mode=pull"


def test_spellings_of_https_are_mapped():
    for scheme in ("davs", "s3s", "webdavs", "https"):
        assert order_of("/x", {"source": f"{scheme}://a.org/f"}).remote == "https://a.org/f"


def test_what_is_told_of_a_url_holds_no_query():
    order = order_of("/x", {"destination": "https://a.org/f?X-Amz-Signature=abc"})
    assert (order.push, order.signed, order.shown) == (True, True, "https://a.org/f")
    assert "abc" not in order.shown
    assert not order_of("/x", {"source": URL}).signed


def test_secrets_of_the_other_side_do_not_show_in_the_order():
    order = order_of("/x", {"source": URL, "transferheaderauthorization": "Bearer hush"})
    assert "hush" not in repr(order)
    assert order.secret == "hush"


@pytest.mark.parametrize(
    ("text", "streams"), [("0", 1), ("1", 1), ("4", 4), ("100", 8), ("-1", 1), ("x", 1), ("9" * 30, 1)]
)
def test_a_number_of_streams_is_never_an_error(text, streams):
    assert order_of("/x", {"source": URL, "x-number-of-streams": text}).streams == streams


@pytest.mark.parametrize(("text", "tag"), [("65", 65), ("65535", 65535), ("64", 0), ("65536", 0), ("x", 0)])
def test_a_scitag_out_of_range_is_ignored(text, tag):
    assert order_of("/x", {"source": URL, "scitag": text}).scitag == tag
    assert order_of("/x", {"source": URL, "transferheaderscitag": text}).scitag == tag


@given(
    st.dictionaries(
        st.sampled_from(
            ["source", "destination", "overwrite", "credential", "digest", "repr-digest", "scitag",
             "clientinfo", "requirechecksumverification", "x-number-of-streams", "x-expected-size",
             "x-min-throughput", "transferheaderhost", "transferheaderauthorization",
             "transferheader", "oc-checksum"]
        ),
        st.text(max_size=60),
    )
)  # fmt: skip
def test_headers_of_any_kind_give_an_order_or_one_clear_error(headers):
    with suppress(BadRequest):
        assert order_of("/x", headers).remote.startswith("http")


def test_markers_never_go_back_and_name_the_peers():
    progress = Progress()
    progress.connected(("10.0.0.1", 5), ("192.0.2.7", 443))
    progress.connected(("::1", 5), ("2001:db8::7", 1094))
    progress.bytes = 100
    marker = progress.marker(1764000000.9)
    assert marker.startswith("Perf Marker\n    Timestamp: 1764000000\n")
    assert "    Stripe Index: 0\n" in marker
    assert "    Total Stripe Count: 1\n" in marker
    assert "    RemoteConnections: tcp:192.0.2.7:443,tcp:[2001:db8::7]:1094\n" in marker
    assert marker.endswith("End\n")
    progress.bytes = 10  # another attempt from the start
    assert "Stripe Bytes Transferred: 100\n" in progress.marker(0)


@given(st.text(max_size=3000))
def test_a_failure_is_one_short_line_of_ascii_behind_one_for_programs(text):
    lines = last_lines(blame(StorageFull(text), "destination"))
    told, failure, end = lines.split("\n")
    assert end == ""
    assert json.loads(told.removeprefix("X-TPC-Error: ")) == {
        "code": "storage-full", "side": "destination", "retry": "elsewhere", "status": 507,
    }  # fmt: skip
    assert failure.startswith("failure: ")
    assert failure.isascii()
    assert len(failure) < 1000
    assert "\r" not in failure


def test_success_is_the_only_line():
    assert last_lines(None) == "success: Created\n"


async def test_turns_go_by_issuer_and_host_and_nobody_is_held_up_by_others():
    turns, order = Turns(2, 1, 10), []

    async def work(name, issuer, host, go):
        async with turns.turn(issuer, host):
            order.append(name)
            await go.wait()

    go, later = asyncio.Event(), asyncio.Event()
    tasks = [
        asyncio.create_task(work("first", "a", "x", go)),
        asyncio.create_task(work("behind", "a", "x", later)),
        asyncio.create_task(work("elsewhere", "a", "y", later)),
        asyncio.create_task(work("other", "b", "z", later)),
        asyncio.create_task(work("third of a", "a", "w", later)),
    ]
    await asyncio.sleep(0)
    assert order == ["first", "elsewhere", "other"]
    assert turns.would_wait("a", "q")
    go.set()
    await tasks[0]
    await asyncio.sleep(0)
    assert order[3:] == ["behind"]
    later.set()
    await asyncio.gather(*tasks)
    assert not turns.would_wait("a", "x")


async def test_who_gives_up_waiting_leaves_the_queue():
    turns = Turns(1, 1, 1)
    async with turns.turn("a", "x"):
        waiting = asyncio.create_task(turns.turn("a", "x").__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests):
            turns.check("a", "x")
        waiting.cancel()
        await asyncio.wait({waiting})
        turns.check("a", "x")
    assert not turns.would_wait("a", "x")


async def test_a_turn_that_comes_just_as_one_gives_up_goes_to_the_next():
    turns = Turns(1, 1, 5)
    first = turns.turn("a", "x")
    await first.__aenter__()
    second = asyncio.create_task(turns.turn("a", "x").__aenter__())
    third = asyncio.create_task(turns.turn("a", "x").__aenter__())
    await asyncio.sleep(0)
    await first.__aexit__(None, None, None)
    second.cancel()
    await asyncio.wait({second, third}, timeout=1)
    assert second.cancelled()
    assert third.done()


def test_what_the_client_calls_itself_can_forge_no_line_of_the_log():
    order = order_of("/f", {"source": "https://a.example/f", "clientinfo": "job\x85id\x9b[31m\u20287"})
    assert order.info == "jobid[31m7"
