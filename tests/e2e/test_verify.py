"""``doma verify``: finds the file whose bytes changed behind the system's back."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Said, Start


def test_a_flipped_byte_is_found_beside_the_running_system(
    start: Start, command: Callable[..., Said]
) -> None:
    system = start("home", "--role", "issuer", "--role", "storage")
    for name in ("a/one", "a/two", "three"):
        system.put(f"/site/{name}", name.encode() * 1000)
    said = command("verify", "--home", system.home.path, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out) == {"files": 3, "bytes": 15_000, "first_checksum": 0, "bad": []}

    file = system.home / "site" / "a" / "two"
    written = file.stat()
    with file.open("r+b") as damaged:
        damaged.seek(77)
        damaged.write(b"!")
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))  # as a disk loses a bit: nobody wrote
    said = command("verify", "--home", system.home.path, "site", "--json")
    assert said.code != 0
    (bad,) = json.loads(said.out)["bad"]
    assert bad["path"] == "/a/two"
    assert bad["stored"] != bad["found"]
    said = command("verify", "--home", system.home.path, "--path", "/three")
    assert said.code == 0
    assert "1 files" in said.out


def test_an_unknown_endpoint_or_algorithm_is_one_line(tmp_path: Path, command: Callable[..., Said]) -> None:
    said = command("verify", "elsewhere", "--home", tmp_path)
    assert said.code != 0
    assert "elsewhere" in said.line
    said = command("verify", "--home", tmp_path, "--algorithm", "rot13")
    assert said.code != 0
    assert "adler32" in said.line
