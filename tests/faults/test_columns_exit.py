"""A client that has read its columns ends in order."""

import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parents[1] / "data" / "Run2012B_SingleMu-1000.parquet"
READ = """
import asyncio, sys, httpx
from doma.columns.client import ColumnClient, Delivered
data = open(sys.argv[1], "rb").read()
http = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: httpx.Response(200, content=data)))
result = Delivered("a", "https://results.test/a", {}, len(data), 1000, "b", 0)
print(asyncio.run(ColumnClient(http).read(result)).num_rows)
"""


def test_no_thread_of_arrow_holds_on_to_python_while_the_interpreter_ends(program):
    # one in eight such processes aborted when Arrow read from a Python object
    for _ in range(3):
        command = [sys.executable, "-c", READ, str(FILE)]
        running = [program(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        said = [process.communicate(timeout=50)[0] for process in running]
        assert (said, [process.returncode for process in running]) == (["1000\n"] * 4, [0] * 4)
