"""``doma verify``: finds the file whose bytes changed behind the system's back."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import System

Said = Callable[..., tuple[int, str, str]]


def test_a_flipped_byte_is_found_beside_the_running_system(shared: System, said: Said) -> None:
    for name in ("a/one", "a/two", "three"):
        shared.put(f"/site/verify/{name}", name.encode() * 1000)
    code, out, err = said("verify", "--home", shared.home.path, "site", "--path", "/verify", "--json")
    assert code == 0, err
    assert json.loads(out) == {"files": 3, "bytes": 15_000, "first_checksum": 0, "bad": []}

    file = shared.home / "site" / "verify" / "a" / "two"
    written = file.stat()
    with file.open("r+b") as damaged:
        damaged.seek(77)
        damaged.write(b"!")
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))  # as a disk loses a bit: nobody wrote
    code, out, _ = said("verify", "--home", shared.home.path, "--json")
    assert code != 0
    (bad,) = json.loads(out)["bad"]
    assert bad["path"] == "/verify/a/two"
    assert bad["stored"] != bad["found"]
    code, out, _ = said("verify", "--home", shared.home.path, "--path", "/verify/three")
    assert code == 0
    assert "1 files" in out
    assert shared.ask("DELETE", "/site/verify/").status_code == 204


@pytest.mark.parametrize(
    ("options", "word"), [(("elsewhere",), "elsewhere"), (("--algorithm", "rot13"), "adler32")]
)
def test_an_unknown_endpoint_or_algorithm_is_one_line(
    tmp_path: Path, said: Said, options: tuple[str, ...], word: str
) -> None:
    code, _, err = said("verify", "--home", tmp_path, *options)
    assert code != 0
    (line,) = err.splitlines()
    assert word in line
