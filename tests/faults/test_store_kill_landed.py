"""Files that are published in one step, and a kill: all that has a name is whole, the rest is gone."""

import os
import subprocess
import sys
import zlib

import pytest

from doma.store.file import FileStore

pytestmark = pytest.mark.fault

WRITER = """
import asyncio, itertools, sys
from pathlib import Path
from doma.store.file import FileStore

async def main():
    store = FileStore(Path(sys.argv[1]), fsync=False)
    for number in itertools.count():
        landed = store.land(f"/{number}", str(number).encode() * 1000)
        print(number if landed else "none", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("after", [1, 40, 200])
async def test_after_a_kill_there_are_whole_files_only(tmp_path, after):
    root = tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            said = [child.stdout.readline().strip() for _ in range(after)]
        finally:
            child.kill()
        said += child.stdout.read().split("\n")[:-1]
    if "none" in said:
        pytest.skip("this file system makes no files without a name")
    store = FileStore(root)
    names = [name for name in os.listdir(root) if name != ".doma"]
    assert set(said) <= set(names), "what was told is there"
    for name in names:
        content = name.encode() * 1000
        assert (root / name).read_bytes() == content
        assert (await store.stat(f"/{name}")).checksums == {"adler32": f"{zlib.adler32(content):08x}"}
    assert not os.listdir(root / ".doma" / "new")
    await store.close()
