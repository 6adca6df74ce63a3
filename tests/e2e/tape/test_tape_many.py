"""Requests of many files that are all there, on disk and in a tape buffer: each is answered for once."""

from collections import Counter

import pytest

ON_DISK, IN_BUFFER = 1200, 300
"""More than is looked up, or answered, at once."""


@pytest.fixture(scope="module")
def paths(staging):
    """Files that were put there by hand, and that no row knows."""
    base, names = staging.system.home.path.parent, list[str]()
    for place, url, count in (("site", "/site", ON_DISK), ("tape/disk", "/tape", IN_BUFFER)):
        folder = base / place / "many"
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i:04d}").write_bytes(b"data %d" % i)
        names += [f"{url}/many/{i:04d}" for i in range(count)]
    return names


def test_every_file_of_a_large_request_is_answered_for_once_and_progress_only_grows(staging, paths):
    ident = staging.stage(*reversed(paths), diskLifetime="PT1H")
    done = [0]

    def complete():
        said = staging.poll(ident)
        assert [file["path"] for file in said["files"]] == sorted(paths)
        counts = Counter(file["state"] for file in said["files"])
        assert set(counts) <= {"SUBMITTED", "STARTED", "COMPLETED"}, counts
        done.append(counts["COMPLETED"])
        assert ("completedAt" in said) == (done[-1] == len(paths))
        return "completedAt" in said

    staging.until(complete, 60)
    assert done == sorted(done)
    assert Counter(staging.locality(*paths[-IN_BUFFER:])).keys() <= {"DISK", "DISK_AND_TAPE"}  # pinned


def test_a_large_request_is_cancelled_whole_and_forgotten(staging, paths):
    ident = staging.stage(*paths)
    answer = staging.ask("POST", f"/api/v1/stage/{ident}/cancel", {"paths": paths})
    assert (answer.status_code, answer.content) == (200, b"")
    said = staging.poll(ident)
    assert {file["state"] for file in said["files"]} <= {"CANCELLED", "COMPLETED"}
    assert all(("error" in file) == (file["state"] == "CANCELLED") for file in said["files"])
    assert len(said["files"]) == len(paths)
    assert "completedAt" in said
    assert staging.ask("DELETE", f"/api/v1/stage/{ident}").status_code == 200
    assert staging.ask("GET", f"/api/v1/stage/{ident}").status_code == 404
