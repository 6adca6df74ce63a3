"""What pulling costs the client: CPU seconds a GiB, µs a range, over loopback, against ``http.client``.

Run it by hand: ``python tests/bench/bench_client.py [MiB]``. The server is another process that sends from
memory; only this process's CPU is counted. adler32 is computed on the way, as a cache or a copy does.
"""

import http.client
import multiprocessing
import re
import socket
import sys
import threading
import time
import zlib
from urllib.parse import urlsplit

import uvloop

from doma.core.checksum import hasher
from doma.net.client import RangeClient
from doma.net.sinks import Pour

SIZE = 64 << 20
RANGE = re.compile(rb"Range: bytes=(\d+)-(\d+)", re.IGNORECASE)


def serve(pipe):
    data = memoryview(bytes(range(256)) * (SIZE // 256))
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    pipe.send(listener.getsockname()[1])

    def talk(peer):
        rest = b""
        while more := peer.recv(65536):
            rest += more
            while (end := rest.find(b"\r\n\r\n")) >= 0:
                head, rest = rest[: end + 4], rest[end + 4 :]
                found = RANGE.search(head)
                start, stop = (int(found[1]), int(found[2]) + 1) if found else (0, SIZE)
                status = (
                    b"206 P\r\nContent-Range: bytes %d-%d/%d" % (start, stop - 1, SIZE)
                    if found
                    else b"200 OK"
                )
                peer.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, stop - start))
                peer.sendall(data[start:stop])

    while True:
        threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()


async def ours(url, size, total):
    http_client, buffer, adler = RangeClient(), memoryview(bytearray(min(size, SIZE))), hasher("adler32")
    for i in range(total // size):
        if size < SIZE:
            start = i * size % SIZE
            await http_client.read_range(url, start, start + size, buffer)
            adler.update(buffer)
        else:
            answer = await http_client.request("GET", url, on_head=lambda head: Pour(adler.update))
            await answer.finished()
    await http_client.close()


def stdlib(url, size, total):
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    buffer, value = memoryview(bytearray(1 << 20)), 1
    for i in range(total // size):
        start = i * size % SIZE
        connection.request("GET", "/f", headers={"Range": f"bytes={start}-{start + size - 1}"})
        answer = connection.getresponse()
        while got := answer.readinto(buffer):
            value = zlib.adler32(buffer[:got], value)
    connection.close()


def cpu(work):
    began = time.process_time()
    work()
    return time.process_time() - began


def main():
    total = int(sys.argv[1] if len(sys.argv) > 1 else 512) << 20
    here, there = multiprocessing.Pipe()
    child = multiprocessing.Process(target=serve, args=(there,), daemon=True)
    child.start()
    url = f"http://127.0.0.1:{here.recv()}/f"
    print(f"{'piece':>10} {'ours s/GiB':>11} {'http.client':>12} {'ratio':>6} {'ours µs/request':>16}")
    for size in (64 << 10, 1 << 20, SIZE):
        mine = min(cpu(lambda s=size: uvloop.run(ours(url, s, total))) for _ in range(3))
        theirs = min(cpu(lambda s=size: stdlib(url, s, total)) for _ in range(3))
        gib, calls = total / (1 << 30), total // size
        per = mine / calls * 1e6
        print(
            f"{size >> 10:>7} KiB {mine / gib:>11.3f} {theirs / gib:>12.3f}",
            f"{mine / theirs:>6.2f} {per:>16.0f}",
        )
    child.terminate()
    child.join()


if __name__ == "__main__":
    main()
