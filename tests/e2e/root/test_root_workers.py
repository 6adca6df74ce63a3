"""Several processes on one port: every stream of a session finds its session."""

import asyncio
from pathlib import Path

from doma.net import xroot_frames as frames
from doma.net.xroot_frames import Code
from tests.e2e.root.conftest import CONTENT, Wire


async def test_streams_meet_in_one_process_whichever_accepted_them(start, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "f").write_bytes(CONTENT)
    (tmp_path / "doma.toml").write_text(
        "[listen]\nworkers = 2\n"
        f'[endpoints.pub]\nstore = "file://{tmp_path}/data"\npublic = true\n'
    )  # fmt: skip
    system = start("home", "--config", tmp_path / "doma.toml", "--role", "storage")
    host, port = system.run["endpoints"]["pub"]["root"].split("/")[2].rsplit(":", 1)
    wires = [await Wire.dial((host, int(port))) for _ in range(12)]
    control = wires[0]
    await control.login()
    handle = await control.open("/pub/f")
    for wire in wires[1:]:
        await wire.greet(expect=1)
        status, body = await wire.ask(Code.BIND, control.id)
        assert status == 0, body
        control.send(Code.READ, frames.P_READ.pack(handle, 5, 1000), body + bytes(7))
        _, status, got = await asyncio.wait_for(wire.one(), 20)
        assert (status, got) == (0, CONTENT[5:1005])
    for wire in wires:
        await wire.close()
