"""How a prestage tells its progress: Pelican's text lines, or JSON objects for many files.

Source: cache contract §7.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus

from doma.cache.prestage import TELL, Progress, Staging
from doma.core.errors import problem


async def lines(job: Staging) -> AsyncIterator[str]:
    """``status: queued``, ``status: active,offset=N`` every 2 s, ``success: ok`` or ``failure: …``."""
    try:
        async for now in job:
            yield _line(now)
    finally:
        job.cancel()


async def objects(jobs: Sequence[Staging]) -> AsyncIterator[str]:
    """One JSON object a line for whatever has changed, every 2 s, and the sum at the end."""
    told: dict[str, Progress] = {}
    running = {job.task for job in jobs}
    try:
        while True:
            for job in jobs:
                now = job.now
                if told.get(now.path) is not now:
                    told[now.path] = now
                    yield json.dumps(_object(now)) + "\n"
            if not running:
                break
            _, running = await asyncio.wait(running, timeout=TELL)
        failed = sum(now.status == "failure" for now in told.values())
        yield json.dumps({"status": "done", "files": len(told), "failed": failed}) + "\n"
    finally:
        for job in jobs:
            job.cancel()


def _line(now: Progress) -> str:
    match now.status:
        case "queued":
            return "status: queued\n"
        case "active":
            return f"status: active,offset={now.offset}\n"
        case "success":
            return "success: ok\n"
        case "failure":
            assert now.error is not None
            text = " ".join(now.error.message.split())
            return f"failure: {now.error.http}({HTTPStatus(now.error.http).phrase}): {text}\n"


def _object(now: Progress) -> dict[str, object]:
    out: dict[str, object] = {
        "path": now.path,
        "status": now.status,
        "offset": now.offset,
        "size": now.size,
    }
    return out if now.error is None else out | {"error": problem(now.error)}
