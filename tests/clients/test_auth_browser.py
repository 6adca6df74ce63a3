"""The issuer's pages in a real browser: their policy lets a user log in, agree and be sent back, no more."""

import base64
import json
from hashlib import sha256
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from tests.clients.test_web_browser import Tab, browser

pytestmark = pytest.mark.client

VERIFIER = "v" * 43
SCOPE = "openid storage.read:/a"


async def send(tab: Tab, script: str) -> None:
    """Do what leads to another page, and wait for it."""
    tab._loaded.clear()
    await tab.value(script)
    await tab._loaded.wait()


async def log_in(tab: Tab, password: str, name: str = "alice") -> None:
    fill = f"document.querySelector('[name=username]').value = {json.dumps(name)};"
    fill += f"document.querySelector('[name=password]').value = {json.dumps(password)};"
    await send(tab, fill + "document.querySelector('button').click()")


@pytest.fixture
def users(shared, command):
    """A public client and a user with her password."""
    home, back = shared.home.path, shared.run["url"] + "/health?here"
    scope = ("--scope", "openid storage.read:/")
    command("client", "add", "cli", "--home", home, *scope, "--public", "--redirect", back)
    password = command("user", "add", "alice", "--home", home, "--scope", "storage.read:/").out.strip()
    yield back, password
    command("client", "rm", "cli", "--home", home)
    command("user", "rm", "alice", "--home", home)


async def test_a_user_agrees_to_a_device(shared, users):
    _, password = users
    asked = shared.ask("POST", "/doma/devicecode", None, data={"client_id": "cli", "scope": SCOPE}).json()
    page = asked["verification_uri_complete"].replace(shared.run["https"], shared.run["url"])
    async with browser() as tab:
        await tab.open(page)
        await log_in(tab, "wrong")
        assert "wrong" in await tab.value("document.body.textContent")
        await log_in(tab, password)
        text = await tab.value("document.body.textContent")
        assert asked["user_code"] in text
        assert "storage.read:/a" in text
        assert await tab.value("getComputedStyle(document.body).maxWidth") != "none"  # its style is let in
        await send(tab, "document.querySelector('[value=allow]').click()")
        assert "Done" in await tab.value("document.title")
        assert [c for c in tab.complaints if "401" not in c and "favicon" not in c] == []
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "client_id": "cli"}
    got = shared.ask("POST", "/doma/token", None, data=form | {"device_code": asked["device_code"]}).json()
    assert got["scope"] == SCOPE


async def test_a_browser_is_sent_back_with_a_code(shared, users):
    back, password = users
    challenge = base64.urlsafe_b64encode(sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
    query = {
        "response_type": "code", "client_id": "cli", "redirect_uri": back, "scope": SCOPE, "state": "s1",
        "code_challenge": challenge, "code_challenge_method": "S256",
    }  # fmt: skip
    async with browser() as tab:
        await tab.open(f"{shared.run['url']}/doma/authorize?{urlencode(query)}")
        await log_in(tab, password)
        await send(tab, "document.querySelector('[value=allow]').click()")
        where = await tab.value("location.href")
    assert where.startswith(back)
    found = parse_qs(urlsplit(where).query)
    assert found["state"] == ["s1"]
    form = {"grant_type": "authorization_code", "client_id": "cli", "redirect_uri": back}
    form |= {"code": found["code"][0], "code_verifier": VERIFIER}
    got = shared.ask("POST", "/doma/token", None, data=form).json()
    assert got.keys() >= {"access_token", "id_token"}
