"""What the listener does with odd, slow, broken and hostile connections."""

import json
import socket
import subprocess
import sys
import threading

import httpx
import pytest
import uvloop

from doma.core.config import Listen
from doma.core.errors import ConfigError, PortInUse
from doma.net.listener import Listener, is_loopback, may_be_plain


def test_one_port_speaks_http_and_https(server, trust):
    host, port = server.address
    assert httpx.get(f"http://{host}:{port}/json").json() == {}
    got = httpx.get(f"https://localhost:{port}/scope?a=%20b", verify=trust)
    assert got.text == "['https', 'GET', '1.1', b'/scope', b'a=%20b']"


def test_pipelined_requests_are_answered_in_order(wire, token, tools):
    batch, expected = b"", []
    for i in range(60):
        batch += tools.request("GET", "/site/f", {"Range": f"bytes={i}-{i + 9}"}, token=token)
        expected.append(tools.CONTENT[i : i + 10])
        batch += tools.request("POST", "/echo", body=b"%d" % i)
        expected.append(b"%d" % i)
        if i % 20 == 0:
            batch += tools.request("GET", "/site/big", token=token)
            batch += tools.request("PUT", "/site/piped", body=b"p" * i, token=token)
            expected += [tools.BIG, b""]
    wire.pour(batch)
    for body in expected:
        assert wire.answer().body == body


def test_a_flood_of_pipelined_requests_is_held_back_and_all_answered(wire, tools):
    batch = tools.request("GET", "/json") * 1000
    wire.pour(batch)
    assert all(wire.answer().body == b"{}" for _ in range(1000))


def test_a_head_above_64_kib_is_refused_at_once(wire):
    wire.send(b"GET /json HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000)
    assert wire.answer().status == 431
    assert wire.closed()


def test_a_whole_head_above_64_kib_is_refused_too(plain, tools):
    plain.send(tools.request("GET", "/json", {"X": "a" * 70_000}))
    assert plain.answer().status == 431


@pytest.mark.parametrize(
    "junk",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /json HTTP/1.1\r\n\r\n",
        b"GET /json HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"GET /json HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\n\r\n",
        b"GET /json\r\n\r\n",
        b"GET /json HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /json HTTP/1.1\nHost: x\n\n",
        b"GET /json HTTP/1.1\r\nHost: x\r\nX: a\r\n Authorization: b\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_400_and_the_end(plain, junk):
    plain.send(junk)
    assert plain.answer().status == 400
    assert plain.closed()


@pytest.mark.parametrize("coding", ["gzip, chunked", "identity", "xchunked"])
def test_a_body_in_a_coding_that_is_not_known_is_refused_before_it_comes(plain, server, token, tools, coding):
    plain.send(
        _put("/site/coded", token, 3).replace(b"Content-Length: 3", b"Transfer-Encoding: " + coding.encode())
    )
    got = plain.answer()
    assert (got.status, got.headers["x-error-code"]) == (501, "unsupported")
    assert plain.closed()


def test_http_1_0_with_chunks_ends_the_connection(plain):
    keep = b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    plain.send(b"POST /refuse HTTP/1.0\r\nHost: x\r\n" + keep + b"2\r\nhi\r\n0\r\n\r\n")
    assert plain.answer().headers["connection"] == "close"
    assert plain.closed()


@pytest.mark.parametrize("method", ["BREW", "X-CUSTOM", "G"])
def test_a_method_the_parser_does_not_know_is_answered_501(wire, method):
    wire.send(f"{method} /json HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    got = wire.answer()
    assert (got.status, got.headers["connection"]) == (501, "close")
    assert wire.closed()


def test_a_request_smuggled_behind_a_bad_one_is_not_answered(plain, tools):
    plain.send(tools.request("GET", "/json") + b"NONSENSE\r\n\r\n" + tools.request("GET", "/json"))
    assert [plain.answer().status, plain.answer().status] == [200, 400]
    assert plain.closed()


def test_chunked_bodies_are_joined_and_answers_without_length_are_chunked(wire):
    wire.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    wire.send(b"4;ext=1\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n")
    got = wire.answer()
    assert (got.body, got.headers["transfer-encoding"]) == (b"abcdefg", "chunked")
    assert wire.ask("GET", "/json").status == 200


@pytest.mark.parametrize("rest", [b"ZZ\r\nabc", b"3\r\nabcdef\r\n0\r\n\r\n", b"-1\r\n", b"3\r\nabc\r\n"])
def test_a_lying_chunked_upload_publishes_nothing(plain, server, token, rest, tools):
    head = tools.request("PUT", "/site/lie", {"Transfer-Encoding": "chunked"}, token=token)
    plain.send(head + rest)
    plain.sock.shutdown(socket.SHUT_WR)
    assert plain.answer().status in {400, 422}
    assert plain.closed()
    with server.dial() as other:
        assert other.ask("GET", "/site/lie", token=token).status == 404


def test_endless_chunk_extensions_are_cut_off(plain, tools):
    plain.send(tools.request("POST", "/echo", {"Transfer-Encoding": "chunked"}) + b"1;")
    try:
        for _ in range(40):
            plain.send(b"a" * 16384)
        while plain.more():
            pass
    except (ConnectionError, BrokenPipeError):
        return
    assert b"0\r\n\r\n" not in plain.rest


def test_expect_is_answered_only_when_the_body_is_wanted(wire, token):
    wire.send(_put("/site/wanted", token, 5, "Expect: 100-continue\r\n"))
    assert wire.answer().status == 100
    wire.send(b"hello")
    assert wire.answer("PUT").status in {201, 204}
    wire.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert wire.answer().status == 100
    wire.send(b"hi")
    assert wire.answer().body == b"hi"
    wire.send(_put("/site/wanted", None, 1 << 30, "Expect: 100-continue\r\n"))
    got = wire.answer()
    assert (got.status, got.headers["connection"]) == (401, "close")


def _put(path, token, length, more=""):
    auth = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"PUT {path} HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: {length}\r\n{more}\r\n".encode()


def test_a_small_refused_body_is_read_away_and_the_connection_kept(wire, tools):
    wire.send(tools.request("POST", "/refuse", body=b"x" * 50_000))
    assert wire.answer().status == 403
    assert wire.ask("GET", "/json").status == 200


def test_the_answer_to_a_refused_body_can_be_read(plain, token):
    plain.send(_put("/site/a/", token, 30 << 20) + b"x" * 300_000)
    got = plain.answer()
    assert (got.status, got.headers["connection"]) == (405, "close")


def test_a_half_closed_client_gets_its_answers(plain, token, tools):
    plain.send(tools.request("GET", "/slow") + tools.request("GET", "/site/big", token=token))
    plain.sock.shutdown(socket.SHUT_WR)
    assert plain.answer().body == b"slow"
    assert plain.answer().body == tools.BIG
    assert plain.closed()


def test_a_body_that_ends_early_is_refused_and_leaves_nothing(plain, token, server):
    plain.send(_put("/site/short", token, 100) + b"only this")
    plain.sock.shutdown(socket.SHUT_WR)
    got = plain.answer()
    assert got.status == 422
    assert b"9 bytes came, 100 bytes were announced" in got.body
    with server.dial() as other:
        assert other.ask("GET", "/site/short", token=token).status == 404


def test_http_1_0_and_connection_close_end_the_connection(server, token, tools):
    with server.dial() as old:
        old.send(b"GET /site/f HTTP/1.0\r\nAuthorization: Bearer " + token.encode() + b"\r\n\r\n")
        assert old.answer().body == tools.CONTENT
        assert old.closed()
    with server.dial() as last:
        got = last.ask("GET", "/site/big", {"Connection": "close"}, token=token)
        assert (got.body, got.headers["connection"]) == (tools.BIG, "close")
        assert last.closed()
    with server.dial() as kept:
        for _ in range(2):
            kept.send(b"GET /json HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert kept.answer().headers["connection"] == "keep-alive"
        auth = b"Authorization: Bearer " + token.encode()
        for _ in range(3):
            kept.send(b"GET /site/f HTTP/1.0\r\nConnection: keep-alive\r\n" + auth + b"\r\n\r\n")
            assert kept.answer().headers["connection"] == "keep-alive"


def test_an_upgrade_is_not_offered_and_answered_plainly(wire):
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert wire.ask("GET", "/json", headers).status == 200
    assert wire.ask("POST", "/echo", headers, body=b"body").body == b"body"
    assert wire.ask("GET", "/json").status == 200


def test_an_app_that_crashes_answers_500_and_others_go_on(wire):
    assert wire.ask("GET", "/crash").status == 500
    assert wire.ask("GET", "/json").status == 200


def test_slow_and_silent_clients_are_closed_by_their_limits(site, launch, tools):
    limits = {"head_timeout": 1, "idle_timeout": 1, "body_timeout": 1}
    with launch(tools.application(site), **limits) as server:
        silent, idle, slow, stuck = (server.dial() for _ in range(4))
        idle.send(tools.request("GET", "/json"))
        slow.send(b"GET /json HTTP/1.1\r\nHos")
        stuck.send(tools.request("POST", "/echo", {"Content-Length": "9"}) + b"abc")
        assert idle.answer().status == 200
        assert slow.answer().status == 408
        for wire in (silent, idle, slow):
            assert wire.closed()
        while stuck.more():
            pass
        for wire in (silent, idle, slow, stuck):
            wire.sock.close()


def test_a_stop_lets_answers_end_and_refuses_new_connections(site, launch, token, tools):
    with launch(tools.application(site)) as server:
        idle, slow, large = server.dial(), server.dial(), server.dial()
        assert idle.ask("GET", "/json").status == 200
        large.send(tools.request("GET", "/site/coldbig", token=token))
        slow.send(tools.request("GET", "/slow"))
        assert large.more()
        server.stop()
        assert slow.answer().body == b"slow"
        assert large.answer().body == tools.BIG
        assert slow.closed()
        assert idle.closed()
        server.join()
        with pytest.raises(ConnectionRefusedError):
            server.dial()
        for wire in (idle, slow, large):
            wire.sock.close()


def test_a_stop_cuts_what_does_not_end_in_time(site, launch, token, tools):
    with launch(tools.application(site), drain=0.1) as server:
        stuck = server.dial()
        stuck.send(_put("/site/stuck", token, 100))
        assert stuck.ask  # the server waits for a body that never comes
        server.stop()
        server.join()
        assert stuck.closed()
        stuck.sock.close()


def test_connections_beyond_the_limit_are_refused(site, launch, tools):
    with launch(tools.application(site), max_connections=2) as server:
        one, two = server.dial(), server.dial()
        assert [one.ask("GET", "/json").status, two.ask("GET", "/json").status] == [200, 200]
        with server.dial() as three:
            assert three.closed()
        one.sock.close()
        two.sock.close()


def test_plain_http_can_be_switched_off(site, launch, trust, tools):
    with launch(tools.application(site), plain_http="never") as server:
        with server.dial() as plain:
            got = plain.ask("GET", "/json")
            assert got.status == 403
            assert b"use https://" in got.body
        with server.dial(trust) as wire:
            assert wire.ask("GET", "/json").status == 200


@pytest.mark.parametrize(
    ("policy", "host", "allowed"),
    [
        ("loopback", "127.0.0.1", True),
        ("loopback", "::ffff:127.0.0.1", True),
        ("loopback", "192.0.2.7", False),
        ("loopback", "", False),
        ("always", "192.0.2.7", True),
        ("never", "127.0.0.1", False),
    ],
)
def test_plain_http_from_afar_needs_a_policy_that_says_so(policy, host, allowed):
    assert may_be_plain(policy, host) is allowed


def test_two_workers_share_one_port(site, tools):
    async def main():
        def worker(address, shared=True):
            listen, app = Listen(address=address), tools.application(site)
            return Listener(app, fast=None, listen=listen, tls=None, reuse_port=shared)

        one = worker("127.0.0.1:0")
        host, port = await one.start()
        two = worker(f"{host}:{port}")
        await two.start()
        with pytest.raises(PortInUse):
            await worker(f"{host}:{port}", shared=False).start()
        await one.stop()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://{host}:{port}/json")).status_code == 200
        await two.stop()

    uvloop.run(main())


FEW_FILES = """
import asyncio, resource, uvloop
from doma.core.config import Listen
from doma.net.listener import Listener

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})

async def main():
    listener = Listener(app, fast=None, listen=Listen(address="127.0.0.1:0"), tls=None)
    _, port = await listener.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    print(port, flush=True)
    await asyncio.Event().wait()

uvloop.run(main())
"""


def test_a_server_without_descriptors_refuses_and_recovers():
    with subprocess.Popen([sys.executable, "-c", FEW_FILES], stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(server.stdout.readline())
            socks = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(60)]
            refused = 0
            for sock in socks:
                try:
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    refused += not sock.recv(100)
                except ConnectionError:
                    refused += 1
            assert 15 < refused < 45
            for sock in socks:
                sock.close()
            assert any(_answers(port) for _ in range(200))
        finally:
            server.terminate()


def _answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return sock.recv(100).startswith(b"HTTP/1.1 204")
    except ConnectionError:
        return False


def test_root_connections_are_closed_politely_without_a_root_door(server):
    with server.dial() as wire:
        wire.send(b"\0\0\0\0")
        assert wire.closed()


def test_a_taken_port_is_named_with_the_remedy(server, site, launch, tools):
    address = f"127.0.0.1:{server.address[1]}"
    script = (
        "import uvloop\nfrom doma.core.config import Listen\nfrom doma.net.listener import Listener\n"
        f"uvloop.run(Listener(None, fast=None, listen=Listen(address={address!r}), tls=None).start())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert f"doma.core.errors.PortInUse: {address}: another program listens there" in done.stderr
    assert PortInUse.exit == 73


async def test_another_loop_is_refused():
    with pytest.raises(ConfigError, match="uvloop"):
        await Listener(None, fast=None, listen=Listen(), tls=None).start()


def test_the_same_app_runs_under_uvicorn(site, token, tools, tmp_path):
    import asyncio

    import uvicorn

    config = uvicorn.Config(tools.application(site), port=0, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])))
        thread.start()
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
            assert client.get("/site/f", headers={"Range": "bytes=5-9"}).content == tools.CONTENT[5:10]
            assert client.get("/site/coldbig").content == tools.BIG
            put = client.put("/site/viauvicorn", content=b"abc")
            assert put.status_code in {201, 204}
            assert json.dumps(client.get("/site/viauvicorn").text) == '"abc"'
        server.should_exit = True
        thread.join(20)


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.9", True), ("::1", True), ("10.0.0.1", False), ("x", False)]
)
def test_loopback_is_told_from_the_rest(host, local):
    assert is_loopback(host) is local
