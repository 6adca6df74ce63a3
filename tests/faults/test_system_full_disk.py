"""A disk without room: uploads are refused, reads go on, and all is well again when there is room."""

import errno
from pathlib import Path

import pytest

from doma.core.errors import DomaError
from tests.e2e.test_system_bad_input import MUONS, check_full, temporaries, told


def test_a_full_disk_refuses_uploads_serves_what_is_there_and_recovers_when_it_has_room(small_disk, start):
    system = start(small_disk / "home")
    system.put("/site/data.root", MUONS)
    check_full(system, 24 << 20)
    filler, url = system.home / "filler", system.run["https"] + "/site/data.root"
    _fill(filler)
    late = b"x" * 50_000
    answer = system.ask("PUT", "/site/late", headers={"Accept": "application/json"}, content=late)
    assert told(answer)[:2] == (507, "storage-full")
    for name in ("site", "cache"):
        assert system.ask("GET", f"/{name}/data.root").content == MUONS
    assert system.scan("/site/data.root", ("Muon_pt",), "Events").num_rows == 40
    with pytest.raises(DomaError) as caught:
        system.deliver(url, ("Muon_pt",), "Events")
    assert caught.value.http in {503, 507}
    filler.unlink()
    system.put("/site/late", late)
    assert len(system.deliver(url, ("Muon_pt",), "Events")) == 40
    assert system.ask("GET", "/cache/data.root").content == MUONS
    assert temporaries(system) == []
    assert "Traceback" not in system.log, system.log[system.log.index("Traceback") - 500 :][:5000]
    assert system.down() == 0


def _fill(path: Path) -> None:
    """Write until there is no room for another byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 9, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise
