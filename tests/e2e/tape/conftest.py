"""A running system with one tape endpoint whose buffer keeps only what is pinned."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CONFIG = """
[endpoints.site]
store = "file://{base}/site"
[endpoints.tape]
store = "tape+file://{base}/tape"
fsync = false
tape = {{ buffer = 0, drives = 2, retry = 0.2 }}
"""
RIGHTS = "storage.read:/ storage.modify:/ storage.stage:/"


@dataclass
class Staging:
    """What a client does with the Tape REST API."""

    system: Any

    def token(self, scope: str = RIGHTS, **how: Any) -> Any:
        return self.system.token(scope, **how)

    def ask(self, method: str, path: str, body: Any = None, token: str | None = "", **how: Any) -> Any:
        token = self.token() if token == "" else token
        if body is not None:
            how["json"] = body
        return self.system.ask(method, path, token, **how)

    def put(self, path: str, data: bytes) -> None:
        self.system.put(path, data)

    def locality(self, *paths: str) -> list[str]:
        answer = self.ask("POST", "/api/v1/archiveinfo", {"paths": paths})
        assert answer.status_code == 200, answer.text
        return [entry.get("locality", entry.get("error")) for entry in answer.json()]

    def stage(self, *paths: str, token: str | None = "", **how: Any) -> str:
        files = [{"path": path, **how} for path in paths]
        answer = self.ask("POST", "/api/v1/stage", {"files": files}, token)
        assert answer.status_code == 201, answer.text
        ident: str = answer.json()["requestId"]
        assert answer.headers["location"].endswith(f"/api/v1/stage/{ident}")
        return ident

    def poll(self, ident: str, token: str | None = "") -> Any:
        answer = self.ask("GET", f"/api/v1/stage/{ident}", token=token)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def states(self, ident: str) -> dict[str, str]:
        return {file["path"]: file["state"] for file in self.poll(ident)["files"]}

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Wait for what the drives do by and by."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it does not come"
            time.sleep(0.03)

    def done(self, ident: str) -> dict[str, str]:
        self.until(lambda: "completedAt" in self.poll(ident))
        return self.states(ident)

    def on_tape(self, path: str, data: bytes) -> None:
        """A file that lies on tape alone."""
        self.put(path, data)
        self.until(lambda: self.locality(path) == ["TAPE"])


@pytest.fixture(scope="session")
def staging(shared: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staging]:
    """One system for all tests; each uses names of its own."""
    base: Path = tmp_path_factory.mktemp("tape")
    config = base / "doma.toml"
    config.write_text(CONFIG.format(base=base))
    system = type(shared)(base / "home", "--config", config, "--role", "issuer", "--role", "storage")
    system.everything = RIGHTS
    system.up()
    yield Staging(system)
    code = system.down()
    assert code == 0, system.log
