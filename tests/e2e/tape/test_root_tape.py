"""Files on tape over root://: said to be offline, staged by prepare, cancelled, given up."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from doma.net.xroot_frames import P_OPEN, P_QUERY, P_STAT, Code, Open, Status
from doma.net.xroot_text import stat_line
from tests.e2e.root.conftest import Wire

STAGE, CANCEL, NOTHING = bytes([8]), bytes([1]), bytes(1)


async def dial(staging: Any, scope: str = "storage.read:/ storage.stage:/") -> Wire:
    host, port = staging.system.run["endpoints"]["tape"]["root"].split("//")[1].split(":")
    wire: Wire = await Wire.dial((host, int(port)))
    await wire.login(cgi=f"xrd.appname=test&authz=Bearer%20{staging.token(scope)}".encode())
    return wire


async def prepare(wire: Wire, options: bytes, data: str, more: int = 0) -> str:
    body = options + bytes(3) + more.to_bytes(2, "big") + bytes(10)
    status, said = await wire.ask(Code.PREPARE, body, data.encode())
    assert status == Status.OK, said
    return str(said.rstrip(b"\0"), "ascii")


async def states(wire: Wire, ident: str, *paths: str) -> list[dict[str, Any]]:
    body = P_QUERY.pack(2, bytes(4))
    status, said = await wire.ask(Code.QUERY, body, "\n".join((ident, *paths)).encode())
    assert status == Status.OK, said
    told = json.loads(said.rstrip(b"\0"))
    assert told["request_id"] == ident
    return list(told["responses"])


async def flags(wire: Wire, path: str) -> int:
    status, said = await wire.ask(Code.STAT, P_STAT.pack(0, bytes(4)), path.encode())
    assert status == Status.OK, said
    return stat_line(said[:-1].decode()).flags


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(800):
        if await condition():
            return
        await asyncio.sleep(0.03)
    raise AssertionError("it does not come")


async def test_prepare_brings_a_file_from_tape_and_says_how_far_it_is(staging):
    path = "/tape/root/a b"
    await asyncio.to_thread(staging.on_tape, "/tape/root/a%20b", b"12345")
    wire = await dial(staging)
    assert await flags(wire, path) & 8
    (before,) = await states(wire, "none", path)
    assert (before["on_tape"], before["online"], before["has_reqid"]) == (True, False, False)
    code, text = await wire.refused(Code.OPEN, P_OPEN.pack(0, Open.READ, 0), path.encode())
    assert (code, "tape" in text) == (3005, True)
    ident = await prepare(wire, STAGE, path)

    async def online() -> bool:
        (now,) = await states(wire, ident, path)
        assert now["has_reqid"]
        return bool(now["online"]) and not now["requested"]

    await until(online)
    assert not await flags(wire, path) & 8
    assert await wire.read(await wire.open(path), 0, 10) == b"12345"
    assert [file["path"] for file in await states(wire, ident)] == [path]
    await prepare(wire, NOTHING, path, more=1)
    await wire.close()


async def test_a_request_is_cancelled_by_its_id_and_hidden_from_who_may_not_ask(staging):
    path = "/tape/root/c"
    await asyncio.to_thread(staging.on_tape, path, b"1")
    wire = await dial(staging)
    ident = await prepare(wire, STAGE, f"{path}\n/tape/root/none")
    await prepare(wire, CANCEL, ident)
    told = {file["path"]: file for file in await states(wire, ident)}
    assert set(told) == {path, "/tape/root/none"}
    assert not any(file["requested"] for file in told.values())
    stranger = await dial(staging, "storage.read:/elsewhere")
    assert await states(stranger, ident) == []
    (alone,) = await states(stranger, ident, path)
    assert (alone["path_exists"], alone["has_reqid"]) == (False, False)
    assert (await stranger.refused(Code.PREPARE, STAGE + bytes(15), path.encode()))[0] == 3010
    assert (await stranger.refused(Code.PREPARE, CANCEL + bytes(15), b"unheard-of"))[0] == 3011
    for one in (wire, stranger):
        await one.close()
