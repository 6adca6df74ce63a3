"""Commands that must fail: one line naming thing, place and remedy, and the right exit code."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest


class Refused:
    """Commands that must fail, run side by side: each costs an interpreter."""

    def __init__(self) -> None:
        self.running: dict[str, subprocess.Popen[str]] = {}

    def begin(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        self.running[name] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip

    def said(self, name: str) -> tuple[int, str, str]:
        process = self.running[name]
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


UP_CASES: dict[str, tuple[list[str], str, int, tuple[str, ...]]] = {
    "port in use": (["--listen", "127.0.0.1:{port}"], "", 73, ("127.0.0.1:{port}", "--listen")),
    "no address": (["--listen", "8443"], "", 78, ("'8443'", "HOST:PORT")),
    "foreign address": (["--listen", "192.0.2.1:0"], "", 78, ("192.0.2.1", "--listen")),
    "unknown key": (
        [],
        "[listen]\nadress = 'x'\n",
        78,
        ("doma.toml", "listen.adress", "did you mean address"),
    ),
    "unknown section": ([], "[cach]\nsize = 1\n", 78, ("doma.toml", "cach", "did you mean cache")),
    "no TOML": ([], "[listen\n", 78, ("doma.toml", "not a TOML file")),
    "no such store": ([], "[endpoints.x]\nstore = 'gopher://a'\n", 78, ("endpoints.x", "gopher", "file:///")),
    "reserved name": ([], "[endpoints.metrics]\nstore = 'memory:'\n", 78, ("endpoints.metrics", "reserved")),
    "unknown role": (["--role", "stroage"], "", 64, ("'stroage'", "storage")),
    "no folder": (["--data", "/nonexistent"], "", 64, ("/nonexistent", "--data")),
    "no config": (["--config", "/nonexistent.toml"], "", 78, ("/nonexistent.toml", "--config")),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, command: Any, taken: int) -> Callable[[str], Any]:
    """All the refused starts, begun four at a time; what each said."""
    base = tmp_path_factory.mktemp("refused")
    results: dict[str, tuple[int, str, str]] = {}
    names = list(UP_CASES)
    for batch in (names[i : i + 4] for i in range(0, len(names), 4)):
        group = Refused()
        for name in batch:
            options, toml, _, _ = UP_CASES[name]
            home = base / name.replace(" ", "-")
            home.mkdir()
            if toml:
                (home / "doma.toml").write_text(toml)
            full = [*command.words, "up", "--home", str(home), *(o.format(port=taken) for o in options)]
            group.begin(name, full)
        for name in batch:
            results[name] = group.said(name)
    return lambda name: (*results[name], base / name.replace(" ", "-"))


@pytest.mark.parametrize("name", list(UP_CASES))
def test_what_cannot_start_says_why_in_one_line_and_leaves_nothing_running(refused, taken, name):
    code, out, err, home = refused(name)
    _, _, expected, words = UP_CASES[name]
    assert (code, out) == (expected, ""), err
    (line,) = err.splitlines()
    for word in words:
        assert word.format(port=taken) in line
    assert not (home / "run.json").exists()
    assert not (home / "lock").exists() or (home / "lock").read_text() == ""


def test_an_unknown_variable_of_the_environment_is_named(tmp_path, said, monkeypatch):
    monkeypatch.setenv("DOMA_CACHE__SICE", "1")
    code, _, err = said("config", "--home", tmp_path)
    assert code == 78
    assert "cache.sice; did you mean size" in err


def test_a_problem_on_the_command_line_has_the_same_facts_as_over_http(shared, said):
    code, _, err = said("token", "--home", shared.home.path, "--scope", "storage.read", "--json")
    found = json.loads(err)
    assert (code, found["code"], found["status"]) == (64, "bad-request", 400)
