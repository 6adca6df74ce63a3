"""Commands that must fail: one line naming thing, place and remedy, and the right exit code."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


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


LATE = ("port in use", "foreign address", "no such store", "reserved name")
"""Refused by a process that had begun to start: these run as processes of their own, side by side."""


def options_of(name: str, base: Path, port: int) -> list[str]:
    """The arguments of a case, whose home is made with its configuration."""
    options, toml, _, _ = UP_CASES[name]
    home = base / "home"
    home.mkdir(parents=True)
    if toml:
        (home / "doma.toml").write_text(toml)
    return ["up", "--home", str(home), *(option.format(port=port) for option in options)]


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory, command: Any, taken: int) -> dict[str, Any]:
    """What the late ones said, and their homes."""
    base = tmp_path_factory.mktemp("refused")
    running = {
        name: subprocess.Popen(
            [*command.words, *options_of(name, base / name, taken)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for name in LATE
    }  # fmt: skip
    said = {name: process.communicate(timeout=55) for name, process in running.items()}
    return {name: (running[name].returncode, *said[name], base / name / "home") for name in LATE}


def _check_refused(name: str, port: int, code: int, out: str, err: str, home: Path) -> None:
    _, _, expected, words = UP_CASES[name]
    assert (code, out) == (expected, ""), err
    (line,) = err.splitlines()
    for word in words:
        assert word.format(port=port) in line
    assert not (home / "run.json").exists()
    assert not (home / "lock").exists() or (home / "lock").read_text() == ""


@pytest.mark.parametrize("name", LATE)
def test_what_cannot_start_says_why_in_one_line_and_leaves_nothing_running(late, taken, name):
    _check_refused(name, taken, *late[name])


@pytest.mark.parametrize("name", [name for name in UP_CASES if name not in LATE])
def test_what_makes_no_sense_is_refused_before_anything_starts(said, tmp_path, name):
    umask = os.umask(0o022)
    try:
        code, out, err = said(*options_of(name, tmp_path, 0))
    finally:
        os.umask(umask)
    _check_refused(name, 0, code, out, err, tmp_path / "home")


def test_an_unknown_variable_of_the_environment_is_named(tmp_path, said, monkeypatch):
    monkeypatch.setenv("DOMA_CACHE__SICE", "1")
    code, _, err = said("config", "--home", tmp_path)
    assert code == 78
    assert "cache.sice; did you mean size" in err


def test_a_problem_on_the_command_line_has_the_same_facts_as_over_http(shared, said):
    code, _, err = said("token", "--home", shared.home.path, "--scope", "storage.read", "--json")
    found = json.loads(err)
    assert (code, found["code"], found["status"]) == (64, "bad-request", 400)
