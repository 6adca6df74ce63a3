"""A tree that others made, deeper than clients may name: it can be looked at, refused and removed."""

import os
import sys

DEPTH = sys.getrecursionlimit() + 100


def test_a_tree_without_end_is_not_copied_and_can_be_deleted(shared):
    top = shared.home / "site" / "deep"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    try:
        for _ in range(DEPTH):
            os.mkdir("d", dir_fd=fd)
            inner = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
    finally:
        os.close(fd)
    try:
        assert shared.ask("PROPFIND", "/site/deep", headers={"Depth": "1"}).status_code == 207
        copied = shared.ask("COPY", "/site/deep", headers={"Destination": "/site/deep-copy"})
        assert copied.status_code == 400, copied.text
        assert "200" in copied.text
        assert shared.ask("HEAD", "/site/deep-copy").status_code == 404
    finally:
        assert shared.ask("DELETE", "/site/deep").status_code == 204
    assert shared.ask("HEAD", "/site/deep").status_code == 404
    assert os.listdir(shared.home / "site" / ".doma" / "gone") == []
    assert "Traceback" not in shared.log
