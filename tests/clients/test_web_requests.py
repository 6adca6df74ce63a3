"""The pages of column requests in a real browser."""

import asyncio
import base64
from contextlib import suppress
from pathlib import Path

import pytest

from tests.clients.test_web_browser import LIVE, Tab, browser
from tests.conftest import System

pytestmark = pytest.mark.client

ZMUMU = Path(__file__).parents[1] / "data/uproot-Zmumu.root"
COLUMNS = "(dict (list 'pt') (list (attr e 'pt1')))"
SELECTION = f"(call Select (call EventDataset 'f' 'events') (lambda (list e) {COLUMNS}))"
EVIL = "<img src=x onerror=alert(1)> & more"
SLOW = "def run_query(name):\n    import time\n    print('waiting')\n    time.sleep(60)\n"


def submit(system: System, *names: str, **more: str) -> str:
    asked = {"title": EVIL, "selection": SELECTION, "codegen": "uproot", "result-format": "parquet", **more}
    files = [f"{system.run['https']}/site/{name}.root" for name in names]
    answer = system.ask("POST", "/servicex/transformation?wait=0", json=asked | {"file-list": files})
    return str(answer.json()["request_id"])


async def width(tab: Tab, pixels: int) -> int:
    await tab.do(
        "Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=False
    )
    return int(await tab.value("document.documentElement.scrollWidth"))


async def ended(tab: Tab) -> str:
    """The state on the page, once it is a final one; the page is loaded anew meanwhile."""
    async with asyncio.timeout(40):
        while True:
            with suppress(AssertionError):  # asked between two pages
                if state := await tab.value("document.querySelector('[data-final] h2')?.textContent"):
                    return str(state)
            await asyncio.sleep(0.05)


async def test_a_request_is_followed_to_its_end_and_found_in_the_list(start):
    system = await asyncio.to_thread(start)
    await asyncio.to_thread(system.put, "/site/z.root", ZMUMU.read_bytes())
    async with browser() as tab:
        await tab.open(system.run["url"] + "/requests")
        await tab.until(LIVE)
        id_ = await asyncio.to_thread(submit, system, "z", "gone")
        await tab.until(f"document.querySelector('a[href$=\"{id_}\"]')")
        await tab.follow(f'a[href$="{id_}"]')
        await tab.until("document.getElementById('state').textContent === 'ended'")
        text = await tab.value("document.body.textContent")
        for part in (EVIL, "Complete", "1 failed", "gone.root", "404", "2,304"):
            assert part in text.replace("\u202f", ",").replace("\u2009", ","), part
        assert await tab.value("document.images.length") == 0
        assert await tab.value("document.querySelector('form')") is None
        for pixels in (1000, 400):
            assert await width(tab, pixels) <= pixels
        assert tab.complaints == []


async def test_the_button_cancels_with_and_without_scripts(start):
    system = await asyncio.to_thread(start)
    await asyncio.to_thread(system.put, "/site/z.root", ZMUMU.read_bytes())
    if "python" not in system.ask("GET", "/servicex").json()["code-gen-image"]:
        pytest.skip("no sandbox here (Debian: bubblewrap)")
    slow = {"codegen": "python", "selection": base64.b64encode(SLOW.encode()).decode()}
    async with browser() as tab:
        for scripts in (True, False):
            await tab.do("Emulation.setScriptExecutionDisabled", value=not scripts)
            id_ = await asyncio.to_thread(submit, system, "z", **slow)
            await tab.open(f"{system.run['url']}/requests/{id_}")
            if scripts:
                await tab.until(LIVE)
            await tab.value("document.querySelector('form').requestSubmit()")
            assert await ended(tab) == "Canceled"
            assert await tab.value("location.pathname") == f"/requests/{id_}"
        assert tab.complaints == []
