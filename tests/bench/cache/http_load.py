"""Load over http for the benchmark of caches: ranges over kept connections, whole files, many at once.

Heads of answers may differ in length (``Age`` grows), so unlike ``dataplane_load.run_ranges`` this reads each
one. Every status and length is checked.
"""

import random
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.cache.caches import Cache
from tests.bench.dataplane_load import Target, head_of, length_of, swallow

HEADERS = (
    "User-Agent: bench/1.0\r\nAccept: */*\r\nAccept-Encoding: identity\r\nX-Request-Id: 0123456789abcdef\r\n"
)


def target(cache: Cache, path: str) -> Target:
    """A file of the origin at this cache; everybody is sent the token that ours wants."""
    token = cache.token or "t" * 700
    headers = f"Authorization: Bearer {token}\r\n{HEADERS}"
    return Target(cache.kind, cache.http, cache.http, cache.prefix + path, "", headers)


def ranges(
    where: Target, count: int, size: int, whole: int, *, parts: int = 1, connections: int = 8, seed: int = 7
) -> list[float]:
    """Ask for ``count`` random spans, one at a time on each connection; the seconds that each took.

    Args:
        where: The file.
        count: Requests.
        size: Bytes of a span.
        whole: Length of the file.
        parts: Spans of a request.
        connections: Clients.
        seed: Of the offsets.
    """
    rng = random.Random(seed)
    socks = [where.dial(tls=False) for _ in range(connections)]
    buffer = memoryview(bytearray(1 << 20))
    began, taken = [0.0] * connections, []

    def send(turn: int) -> None:
        starts = sorted(rng.randrange(whole - size + 1) for _ in range(parts))
        text = ", ".join(f"{start}-{start + size - 1}" for start in starts)
        data = where.request(f"Range: bytes={text}\r\n")
        began[turn % connections] = time.perf_counter()
        socks[turn % connections].sendall(data)

    try:
        for turn in range(min(connections, count)):
            send(turn)
        for turn in range(count):
            length = answer(socks[turn % connections], b"206", buffer)
            assert length == size if parts == 1 else length > size * parts, (length, size, parts)
            taken.append(time.perf_counter() - began[turn % connections])
            if turn + connections < count:
                send(turn + connections)
    finally:
        for sock in socks:
            sock.close()
    return taken


def answer(sock: socket.socket, status: bytes, buffer: memoryview) -> int:
    """Receive one answer and forget its body; the body's length."""
    head, rest = head_of(sock)
    assert head[9:12] == status, head
    length = length_of(head)
    swallow(sock, length - len(rest), buffer)
    return length


def whole(where: Target, size: int) -> float:
    """Read a whole file once; seconds."""
    buffer = memoryview(bytearray(1 << 20))
    with where.dial(tls=False) as sock:
        began = time.perf_counter()
        sock.sendall(where.request())
        assert answer(sock, b"200", buffer) == size
        return time.perf_counter() - began


def herd(where: Target, size: int, readers: int) -> float:
    """Read a whole file by many at the same time; seconds until the last one has it."""
    began = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        for done in [pool.submit(whole, where, size) for _ in range(readers)]:
            done.result()
    return time.perf_counter() - began


def curl(cache: Cache, path: str, folder: Path, size: int) -> float:
    """Read a file by curl; seconds."""
    config = folder / "curl.cfg"  # so that no token shows up in the list of processes
    config.write_text(
        f'url = "{cache.url(path)}"\nheader = "Authorization: Bearer {cache.token or "none"}"\n'
        'silent\nshow-error\nfail\noutput = "/dev/null"\nwrite-out = "%{size_download}"\n'
    )
    began = time.perf_counter()
    done = subprocess.run(["curl", "-K", str(config)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == size, done.stdout
    return time.perf_counter() - began


def xrdcp(cache: Cache, path: str) -> float:
    """Read a file by xrdcp; seconds."""
    url = cache.url(path, "root") + (f"?authz=Bearer%20{cache.token}" if cache.token else "")
    began = time.perf_counter()
    subprocess.run(["xrdcp", "-f", "-s", url, "/dev/null"], check=True)
    return time.perf_counter() - began
