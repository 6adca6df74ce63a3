"""Push-down against plain remote Parquet: bytes and CPU of the client, one run, one machine, loopback.

Run it by hand: ``python tests/bench/bench_scan.py [--files N] [--rows N] [--repeat N]``. Both sides project
three columns and cut on one. The plain side is pyarrow over a file object that fetches ranges of
the same file by HTTP; the scan side is our Flight service. Each server is a process of its own, so that the
CPU time of this process is the client's alone. Medians over the repetitions are printed, and their ratios.
"""

import argparse
import asyncio
import http.client
import io
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COLUMNS = ["pt", "eta", "event"]


def make(folder, files, rows):
    """Event-like files: a flat spectrum to cut on, jagged-free, 40 columns of which four are used."""
    rng = np.random.default_rng(5)
    for number in range(files):
        columns = {
            "cut": rng.random(rows, np.float32),
            "pt": rng.exponential(30, rows).astype(np.float32),
            "eta": rng.normal(0, 1.2, rows).astype(np.float32),
            "event": np.arange(rows, dtype=np.uint64) + number * rows,
        }
        columns |= {f"other{n}": rng.random(rows, np.float32) for n in range(36)}
        name = folder / f"part{number}.parquet"
        pq.write_table(pa.table(columns), name, compression="zstd", row_group_size=100_000)


def serve_ranges(folder, ready):
    """A plain HTTP/1.1 server of byte ranges."""

    class Ranges(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = 1 << 16

        def do_GET(self):
            with (Path(folder) / self.path[1:]).open("rb") as file:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                file.seek(int(first))
                body = file.read(int(last) - int(first) + 1)
            self.send_response(206)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    ready.send(server.server_address[1])
    server.serve_forever()


def serve_scans(folder, ready):
    """The Flight service over the same folder."""
    from doma.auth.gate import Gate
    from doma.core.config import Scan
    from doma.scan.flight import FlightDoor
    from doma.scan.opener import StoreOpener
    from doma.scan.service import ScanService
    from doma.store.file import FileStore

    loop = asyncio.new_event_loop()

    async def make_store():
        return FileStore(Path(folder), read_only=True)

    store = loop.run_until_complete(make_store())
    threading.Thread(target=loop.run_forever, daemon=True).start()
    service = ScanService({"site": StoreOpener(store, loop)}, None, {"site": Gate({}, public=True)}, Scan())
    ready.send(FlightDoor(service, "127.0.0.1", loop=loop).start())
    threading.Event().wait()


class Remote(io.RawIOBase):
    """A file of the range server, on one kept connection; counts what it receives."""

    def __init__(self, port, name, size):
        self.connection = http.client.HTTPConnection("127.0.0.1", port)
        self.name, self.size, self.at, self.received = name, size, 0, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self.at

    def seek(self, offset, whence=0):
        self.at = offset + {0: 0, 1: self.at, 2: self.size}[whence]
        return self.at

    def read(self, size=-1):
        size = min(self.size - self.at, size if size >= 0 else self.size)
        if size <= 0:
            return b""
        self.connection.request(
            "GET", f"/{self.name}", headers={"Range": f"bytes={self.at}-{self.at + size - 1}"}
        )
        data = self.connection.getresponse().read()
        self.at += len(data)
        self.received += len(data)
        return data


def plain(port, folder, cut):
    """Rows and bytes of the plain way: column chunks come whole, the cut is done here."""
    rows = received = 0
    for path in sorted(Path(folder).glob("*.parquet")):
        remote = Remote(port, path.name, path.stat().st_size)
        table = pq.ParquetFile(pa.PythonFile(remote, "r"), pre_buffer=True).read(
            ["cut", *COLUMNS], use_threads=False
        )
        rows += table.filter(pc.field("cut") < cut).select(COLUMNS).num_rows
        received += remote.received
        remote.connection.close()
    return rows, received


def pushed(dataset, cut):
    """Rows and bytes of a scan."""
    table = dataset.to_table(columns=COLUMNS, filter=pc.field("cut") < cut)
    return table.num_rows, dataset.stats()["bytes_sent"]


def measured(work, repeat):
    """Rows, bytes, median CPU seconds and median wall seconds of some work."""
    cpu, wall = [], []
    for _ in range(repeat):
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        rows, size = work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        wall.append(time.perf_counter() - start)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return rows, size, statistics.median(cpu), statistics.median(wall)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    from doma.scan.client import scan

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, pyarrow {pa.__version__}")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.files, options.rows)
        servers, addresses = [], []
        for serve in (serve_ranges, serve_scans):
            ours, theirs = spawn.Pipe()
            servers.append(spawn.Process(target=serve, args=(folder, theirs), daemon=True))
            servers[-1].start()
            addresses.append(ours.recv())
        try:
            print("selectivity  way          rows       bytes   CPU s  wall s   bytes ratio  CPU ratio")
            for share in (0.01, 0.1, 1.0):
                cut = 2.0 if share == 1 else share
                base = measured(lambda c=cut: plain(addresses[0], folder, c), options.repeat)
                report(share, "plain", base, base)
                for compression in ("none", "lz4"):
                    dataset = scan(addresses[1], "/site/*.parquet", compression=compression)
                    found = measured(lambda c=cut, d=dataset: pushed(d, c), options.repeat)
                    assert found[0] == base[0]
                    report(share, f"scan {compression}", found, base)
        finally:
            for server in servers:
                server.terminate()
                server.join()


def report(share, way, found, base):
    rows, size, cpu, wall = found
    print(
        f"{share:>10.0%}  {way:<9} {rows:>8} {size:>11} {cpu:>7.4f} {wall:>7.4f}"
        f"   {size / base[1]:>11.3f} {cpu / base[2]:>10.2f}"
    )


if __name__ == "__main__":
    main()
