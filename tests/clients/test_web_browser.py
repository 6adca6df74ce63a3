"""The status page in a real browser, driven through its debugging port."""

import asyncio
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.tied import Tied

pytestmark = pytest.mark.client

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --remote-debugging-port=0"
)
LIVE = 'document.getElementById("state").textContent === "live"'


class Tab:
    """One page of the browser. ``complaints``: errors of scripts, of the network, of the page's policy."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self._socket, self._numbers, self._session = socket, itertools.count(1), ""
        self._loaded = asyncio.Event()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._asked.pop(said["id"]).set_result(said)
            elif said["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif said["method"] in {
                "Log.entryAdded",
                "Runtime.exceptionThrown",
                "Page.javascriptDialogOpening",
            }:
                self.complaints.append(json.dumps(said["params"]))

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": params, **session})
        said = await asyncio.wait_for(answer, 40)
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    async def begin(self) -> None:
        target = (await self.do("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self.do("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Log", "Runtime"):
            await self.do(f"{domain}.enable")

    async def open(self, url: str) -> None:
        self._loaded.clear()
        await self.do("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), 40)

    async def follow(self, selector: str) -> None:
        """Press a link, and wait for the page that it leads to."""
        self._loaded.clear()
        await self.value(f"document.querySelector({selector!r}).click()")
        await asyncio.wait_for(self._loaded.wait(), 40)

    async def value(self, expression: str) -> Any:
        said = await self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def until(self, expression: str) -> None:
        look = f"const look = () => ({expression}) ? done(true) : setTimeout(look, 20); look()"
        assert await self.value(f"new Promise(done => {{ {look} }})")


@asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no browser is installed; the Debian package is: chromium")
    with tempfile.TemporaryDirectory(prefix="doma-web-", ignore_cleanup_errors=True) as profile:
        process = Tied(
            [program, *QUIET.split(), f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(60), aiohttp.ClientSession() as http:
                port, path = await _place(Path(profile) / "DevToolsActivePort", process)
                async with http.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket:
                    tab = Tab(socket)
                    listening = asyncio.create_task(tab.listen())
                    await tab.begin()
                    yield tab
                    await socket.close()
                    await listening
        finally:
            process.terminate()
            process.wait()


async def _place(file: Path, process: Tied) -> list[str]:
    """Port and path of its debugging socket."""
    while True:
        assert process.poll() is None, "the browser ended"
        if file.exists() and len(lines := file.read_text().splitlines()) == 2:
            return lines
        await asyncio.sleep(0.05)


async def _width(tab: Tab, pixels: int) -> int:
    """What the page needs at a window of that width."""
    await tab.do(
        "Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=False
    )
    return int(await tab.value("document.documentElement.scrollWidth"))


async def test_the_page_turns_live_and_shows_an_upload_where_the_reader_is(start):
    system = await asyncio.to_thread(start)
    evil = "<img src=x onerror=alert(1)>.root"
    async with browser() as tab:
        await tab.open(system.run["url"] + "/")
        await tab.until(LIVE)
        await tab.value(
            "window.before = document.querySelector('section'); getSelection().selectAllChildren(before)"
        )
        tops = "JSON.stringify([...document.querySelectorAll('section')].map(s => s.offsetTop))"
        places = await tab.value(tops)
        for name in ("first.root", evil):
            await asyncio.to_thread(system.put, f"/site/{name}".replace("<", "%3C").replace(" ", "%20"), b"x")
            shown = json.dumps(f"/site/{name}")
            await tab.until(
                f"[...document.querySelectorAll('td')].some(c => c.textContent.trim() === {shown})"
            )
        assert await tab.value("before.isConnected && getSelection().toString().includes('Endpoints')")
        assert await tab.value("document.images.length") == 0
        assert await tab.value(tops) == places
        for pixels in (1000, 400):
            assert await _width(tab, pixels) <= pixels
        assert tab.complaints == []
        await asyncio.to_thread(system.down)
        await tab.until('document.getElementById("state").textContent === "not live"')


async def test_the_page_is_complete_without_scripts(start):
    system = await asyncio.to_thread(start)
    await asyncio.to_thread(system.put, "/site/first.root", b"x")
    async with browser() as tab:
        await tab.do("Emulation.setScriptExecutionDisabled", value=True)
        await tab.open(system.run["url"] + "/")
        assert "/site/first.root" in await tab.value("document.getElementById('live').textContent")
        assert await tab.value("document.getElementById('state').textContent") == "not live"
        assert tab.complaints == []
