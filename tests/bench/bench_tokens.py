"""How long the token endpoint takes: ``python tests/bench/bench_tokens.py [tokens a second] [seconds]``.

A whole ``doma up`` in a process of its own answers an open loop: requests begin when they are due, whatever
the last ones do. Times count from when a request was due, so a queue shows.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

DOMA = (sys.executable, "-c", "from doma.cli import main; main()")
LINES = 32
"""Kept-alive connections."""


class Line:
    """One connection."""

    def __init__(self, url):
        self.url = urlsplit(url)
        self.reader = self.writer = None

    async def post(self, path, form):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.url.hostname, self.url.port)
        body = urlencode(form).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.url.netloc}\r\nContent-Length: {len(body)}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        size = next(int(n[15:]) for n in answer.lower().split(b"\r\n") if n.startswith(b"content-length:"))
        found = json.loads(await self.reader.readexactly(size))
        if b" 200 " not in answer.split(b"\r\n")[0]:
            raise RuntimeError(found)
        return found


def cpu(pid):
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(url, path, form_of, rate, seconds):
    """Milliseconds of each request, sorted."""
    lines = asyncio.Queue()
    for _ in range(LINES):
        lines.put_nowait(Line(url))
    took, begin = [], time.perf_counter()

    async def one(n):
        due = begin + n / rate
        await asyncio.sleep(max(0, due - time.perf_counter()))
        line = await lines.get()
        try:
            await line.post(path, form_of(n))
        finally:
            lines.put_nowait(line)
        took.append((time.perf_counter() - due) * 1e3)

    async with asyncio.TaskGroup() as group:
        for n in range(int(rate * seconds)):
            group.create_task(one(n))
    return sorted(took)


async def main(home, rate, seconds):
    run = json.loads((home / "run.json").read_text())
    path = urlsplit(run["services"]["issuer"]).path + "/token"
    add = [*DOMA, "client", "add", "bench", "--home", str(home), "--scope", "storage.read:/ offline_access"]
    secret = subprocess.run(add, check=True, capture_output=True, text=True).stdout.strip()
    who = {"client_id": "bench", "client_secret": secret}
    own = who | {"grant_type": "client_credentials", "scope": "storage.read:/a"}
    durable = await Line(run["url"]).post(path, own | {"scope": "storage.read:/a offline_access"})
    exchange = who | {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token",
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "subject_token": durable["access_token"],
    }
    refresh = who | {"grant_type": "refresh_token", "refresh_token": durable["refresh_token"]}
    for name, form in (("client credentials", own), ("exchange to refresh", exchange), ("refresh", refresh)):
        before = cpu(run["pid"])
        took = await load(run["url"], path, lambda n, form=form: form, rate, seconds)
        each = (cpu(run["pid"]) - before) / len(took) * 1e3
        shares = "  ".join(f"p{p} {took[int(len(took) * p / 100)]:7.1f} ms" for p in (50, 90, 99))
        print(f"{name:20} {rate:g}/s  {shares}  CPU {each:.2f} ms a token")


if __name__ == "__main__":
    rate, seconds = (float(word) for word in (sys.argv[1:] + ["200", "10"][len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        system = subprocess.Popen(
            [*DOMA, "up", "--home", str(home), "--role", "issuer"], stdout=subprocess.DEVNULL
        )
        try:
            while not (home / "run.json").exists():
                time.sleep(0.1)
            asyncio.run(main(home, rate, seconds))
        finally:
            system.terminate()
            system.wait(30)
