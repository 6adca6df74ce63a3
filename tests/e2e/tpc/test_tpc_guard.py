"""Whom a COPY may reach, whom credentials may reach, who waits, and what needs no network at all."""

import asyncio
import json
import socket

import pytest

from doma.core.errors import ConfigError
from doma.doors.tpc_firefly import PORT, Fireflies
from doma.net.tls import ensure, server_context
from doma.store.http_trust import RemoteGuard
from tests.e2e.tpc.conftest import Other, serving


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8443/x", "http://[::1]:8443/x", "http://localhost:8443/x", "http://0.0.0.0:8443/x",
        "http://169.254.169.254/latest", "http://[::ffff:127.0.0.1]:8443/x", "http://2130706433:8443/x",
        "http://10.0.0.1:8443/x", "http://[fe80::1]:8443/x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("header", ["Source", "Destination"])
async def test_inner_addresses_are_refused_and_the_key_is_named(make_door, url, header):
    door = await make_door(allow=())
    (door.folder / "f").write_bytes(b"x")
    told = await door.copy("/site/f", **{header: url})
    assert told.status == 403
    assert "tpc.allow" in told.text


@pytest.mark.parametrize("host", ["a" * 300, "a" * 64 + ".example", "a..example", "xn--\u0131.example"])
async def test_a_host_that_can_be_no_name_is_the_clients_fault(door, host):
    (door.folder / "f").write_bytes(b"x")
    for header in ("Source", "Destination"):
        told = await door.copy("/site/f", **{header: f"https://{host}/x".encode()})
        assert told.status == 400


async def test_http_and_odd_ports_are_refused_unless_configured(make_door, other):
    door = await make_door(plain_http=False)
    assert (await door.copy("/site/f", Source=other.url)).status == 403
    for port in (22, 25, 80, 444):
        assert (await door.copy("/site/f", Source=f"https://127.0.0.1:{port}/x")).status == 403
    assert other.seen == []


async def test_deny_goes_before_allow(make_door, other):
    door = await make_door(deny=("127.0.0.1",))
    assert (await door.copy("/site/f", Source=other.url)).status == 403


async def test_every_hop_of_a_redirect_is_judged(make_door, other):
    door = await make_door(deny=("127.0.0.2",))

    async def act(asked, writer):
        writer.write(b"HTTP/1.1 307 There\r\nLocation: http://127.0.0.2:9999/x\r\nContent-Length: 0\r\n\r\n")
        return True

    other.act = act
    told = await door.copy("/site/f", Source=other.url)
    assert told.status == 403
    assert "tpc.allow" in told.text


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("push", [False, True])
async def test_credentials_follow_a_redirect_only_where_configured(make_door, other, pair, push):
    async with serving(Other(b"there")) as far:
        hosts = [f"http://127.0.0.1:{one.port}" for one in (other, far)]
        door = await make_door(forward_credentials=(tuple(hosts),) if pair else ())
        (door.folder / "f").write_bytes(b"mine")

        async def act(asked, writer):
            writer.write(f"HTTP/1.1 307 There\r\nLocation: {far.url}\r\nContent-Length: 0\r\n\r\n".encode())
            return True

        other.act = act
        told = await door.copy(
            "/site/f",
            **{"Destination" if push else "Source": other.url},
            TransferHeaderAuthorization="Bearer k",
        )
        assert told.last == "success: Created"
        assert ("authorization" in far.seen[0].headers) is pair
        assert far.seen[0].body == (b"mine" if push else b"")


@pytest.mark.parametrize("push", [False, True])
async def test_no_redirect_leads_out_of_tls(make_door, other, tmp_path, push):
    """Also where the pair may have the credentials."""
    files = ensure(tmp_path / "tls")
    async with serving(Other(b"there"), server_context(files.certificate, files.key)) as safe:
        pair = f"https://127.0.0.1:{safe.port}", f"http://127.0.0.1:{other.port}"
        door = await make_door(ca_file=str(files.ca), forward_credentials=(pair,))
        (door.folder / "f").write_bytes(b"mine")
        side = "Destination" if push else "Source"
        told = await door.copy("/site/f", **{side: safe.url}, TransferHeaderAuthorization="Bearer k")
        assert told.last == "success: Created"

        async def act(asked, writer):
            writer.write(f"HTTP/1.1 307 There\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n".encode())
            return True

        safe.act = act
        told = await door.copy("/site/f", **{side: safe.url}, TransferHeaderAuthorization="Bearer k")
        assert told.status == (202 if push else 502)  # the other server took the bytes before it said so
        assert "redirects from https to http" in told.lines[-1]
        assert other.seen == []


async def test_circles_of_redirects_end(door, other):
    async def act(asked, writer):
        writer.write(b"HTTP/1.1 302 Round\r\nLocation: /round\r\nContent-Length: 0\r\n\r\n")
        return True

    other.act = act
    assert (await door.copy("/site/f", Source=other.url)).status == 502
    assert len(other.seen) == 11


async def test_copies_beyond_the_limit_queue_and_beyond_that_are_refused(make_door, other):
    door = await make_door(per_host=1, waiting=1)
    go = asyncio.Event()

    async def act(asked, writer):
        await go.wait()
        return False

    other.act = act
    first = asyncio.create_task(door.copy("/site/a", Source=other.url))
    while not other.seen:
        await asyncio.sleep(0.01)
    second = asyncio.create_task(door.copy("/site/b", Source=other.url))
    while not [e for e in door.events if e.kind == "copy.started" and e.subject == "/site/b"]:
        await asyncio.sleep(0.01)
    third = await door.copy("/site/c", Source=other.url)
    assert third.status == 429
    assert int(third.headers["retry-after"]) > 0
    await asyncio.sleep(0.4)
    go.set()
    told = await second
    assert "queued" in told.values("State description")
    assert (await first).last == told.last == "success: Created"


async def test_a_copy_between_our_own_doors_stays_here_and_streams(door):
    (door.folder / "f").write_bytes(b"ours")
    told = await door.copy("/memory/g", Source="https://se.example/site/f")
    assert told.last == "success: Created"
    told = await door.copy("/memory/g", Destination="davs://se.example/site/h", Credential="none")
    assert told.last == "success: Created"
    told = await door.copy("/memory/g", Destination=f"{door.url}/site/i", RequireChecksumVerification="true")
    assert told.last == "success: Created"
    assert [(door.folder / name).read_bytes() for name in "hi"] == [b"ours", b"ours"]
    assert door.record("file.landed")["size"] == 4


async def test_both_rights_are_needed_between_our_own_doors(door):
    (door.folder / "f").write_bytes(b"ours")
    wrong = f"Bearer {door.token('storage.read:/other')}"
    told = await door.copy("/memory/g", Source=f"{door.url}/site/f", TransferHeaderAuthorization=wrong)
    assert told.status == 403
    told = await door.copy(
        "/memory/f", Source=f"{door.url}/site/f", Authorization=f"Bearer {door.token('storage.create:/')}"
    )
    assert told.status == 403


async def test_a_flow_with_a_tag_is_told_to_the_collector(make_door, other):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(20)
        door = await make_door(scitags=f"127.0.0.1:{collector.getsockname()[1]}")
        await door.copy("/site/f", Source=other.url, SciTag=str((5 << 6) + 9))
        seen = {}
        for _ in range(2):
            text = (await asyncio.to_thread(collector.recv, 4096)).decode()
            assert text.startswith("<134>1 ")
            body = json.loads(text[text.index("{") :])
            seen[body["flow-lifecycle"]["state"]] = body
    assert seen["start"]["flow-id"]["dst-port"] == other.port
    assert seen["end"]["usage"]["received"] == len(other.data)
    assert (seen["end"]["context"]["experiment-id"], seen["end"]["context"]["activity-id"]) == (5, 9)


@pytest.mark.parametrize("push", [False, True])
async def test_a_copy_over_ipv6_names_both_ends_in_marks_and_to_the_collector(make_door, push):
    other = Other(b"over six " * 1000)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as collector:
        collector.bind(("::1", 0))
        collector.settimeout(20)
        door = await make_door(scitags=f"[::1]:{collector.getsockname()[1]}")
        (door.folder / "f").write_bytes(b"mine")

        async def act(asked, writer):
            if asked.method == "GET":
                await asyncio.sleep(0.5)  # two marks at least
            return False

        other.act = act
        async with await asyncio.start_server(other.serve, "::1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            side, url = "Destination" if push else "Source", f"http://[::1]:{port}/a/f"
            told = await door.copy("/site/f", **{side: url}, SciTag="206")
        assert told.last == "success: Created"
        assert push or f"tcp:[::1]:{port}" in told.values("RemoteConnections")
        text = (await asyncio.to_thread(collector.recv, 4096)).decode()
        flow = json.loads(text[text.index("{") :])["flow-id"]
    assert (flow["afi"], flow["src-ip"], flow["dst-ip"], flow["dst-port"]) == ("ipv6", "::1", "::1", port)


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("192.168.1.1", False), ("172.16.0.1", False), ("169.254.169.254", False), ("100.100.100.200", False),
        ("168.63.129.16", False), ("0.0.0.0", False), ("224.0.0.1", False), ("::1", False), ("::", False),
        ("fe80::1%eth0", False), ("fd00::1", False), ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False), ("ff02::1", False), ("240.0.0.1", False),
        ("fec0::1", False), ("::7f00:1", False), ("64:ff9b:1::7f00:1", False), ("2001:0:7f00:1::", False),
    ],
)  # fmt: skip
def test_the_guard_knows_inner_addresses_in_every_spelling(address, good):
    assert RemoteGuard()("host.example", address) is good
    assert RemoteGuard(deny=("0.0.0.0/0", "::/0"))("host.example", address) is False


def test_the_guard_allows_what_it_is_told_to():
    assert RemoteGuard(allow=("loopback",))("x", "127.0.0.1")
    assert RemoteGuard(allow=("10.0.0.0/8",))("x", "10.1.2.3")
    assert RemoteGuard(allow=("*.inner.example",))("se.inner.example", "10.1.2.3")
    assert not RemoteGuard(allow=("*.inner.example",))("se.outer.example", "10.1.2.3")
    assert not RemoteGuard(allow=("private",), deny=("10.9.0.0/16",))("x", "10.9.1.1")


async def test_origins_of_a_cache_that_clients_name_are_judged_alike(other):
    from doma.cache.origins import guard_of
    from doma.core.errors import Forbidden
    from doma.store.http import HttpStore

    base = f"http://127.0.0.1:{other.port}"
    for globs, allow, good in (
        (["http://*"], [], False),
        (["http://*"], ["loopback"], True),
        (["http://127.0.0.1:*"], [], True),
    ):
        store = HttpStore(base, allow=guard_of(globs, allow, []))
        try:
            if good:
                assert (await store.stat("/a/f.root")).size == len(other.data)
            else:
                with pytest.raises(Forbidden, match="not allowed"):
                    await store.stat("/a/f.root")
        finally:
            await store.close()


async def test_a_copy_onto_itself_is_refused_and_the_file_stays(door):
    (door.folder / "f").write_bytes(b"ours")
    assert (await door.copy("/site/f", Source=f"{door.url}/site/f")).status == 403
    assert (door.folder / "f").read_bytes() == b"ours"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", None), ("c.example", ("c.example", PORT)), ("c.example:7", ("c.example", 7)),
        ("192.0.2.1:7", ("192.0.2.1", 7)), ("2001:db8::1", ("2001:db8::1", PORT)),
        ("[2001:db8::1]", ("2001:db8::1", PORT)), ("[2001:db8::1]:7", ("2001:db8::1", 7)),
    ],
)  # fmt: skip
def test_a_collector_may_have_any_kind_of_address(text, place):
    assert Fireflies(text)._collector == place


@pytest.mark.parametrize("text", ["c.example:x", "[::1", "::1]:7", "c.example:99999", ":7"])
def test_a_collector_that_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match=r"tpc\.scitags"):
        Fireflies(text)
