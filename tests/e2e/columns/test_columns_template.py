"""The process that workers are forked from: stopped, killed and shut down at the wrong moment."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from doma.columns import template as module
from doma.columns.template import Template


@pytest.fixture
async def template():
    made = Template(0.2, 0)
    await made.start()
    yield made
    await made.stop()


async def born(template):
    pid, reader, writer = await template.fork()
    assert json.loads(await reader.readline()) == {"ready": pid}
    return pid, reader, writer


async def ended(pid):
    """Wait until a process is gone; a zombie that nobody has waited for yet is gone, too."""
    async with asyncio.timeout(20):
        while True:
            try:
                if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                    return
            except (FileNotFoundError, ProcessLookupError):
                return
            await asyncio.sleep(0.02)


async def test_workers_end_with_the_process_they_come_from_and_another_one_takes_its_place(template):
    pid, reader, writer = await born(template)
    first = template.pid
    os.kill(first, signal.SIGKILL)
    assert await reader.read() == b""
    writer.close()
    await ended(pid)
    _, _, writer = await born(template)
    assert template.pid != first
    writer.close()


@pytest.mark.parametrize("act", ["fork", "kill"])
async def test_a_stopped_template_is_replaced_and_holds_nobody_up(template, act, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    pid, reader, writer = await born(template)
    first = template.pid
    os.kill(first, signal.SIGSTOP)
    async with asyncio.timeout(30):
        if act == "kill":
            await template.kill(pid)
        else:
            (await born(template))[2].close()
        assert await reader.read() == b""  # the worker of the old one
    writer.close()
    await ended(first)
    assert template.pid != first


async def test_a_killed_worker_is_waited_for_and_killing_it_again_does_no_harm(template):
    pid, _, writer = await born(template)
    await template.kill(pid)
    assert not Path(f"/proc/{pid}").exists()
    await template.kill(pid)
    await template.kill(os.getpid())  # no child of it
    writer.close()
    (await born(template))[2].close()


async def test_who_gives_up_waiting_leaves_no_worker_and_no_answer_behind(template):
    (await born(template))[2].close()
    for turns in range(6):
        asking = asyncio.ensure_future(template.fork())
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        if not asking.cancelled():
            asking.result()[2].close()
    pid, _, writer = await born(template)
    children = Path(f"/proc/{template.pid}/task/{template.pid}/children")
    async with asyncio.timeout(20):
        while children.read_text().split() != [str(pid)]:
            await asyncio.sleep(0.02)
    writer.close()


async def test_stopping_while_a_fork_is_under_way_leaves_no_process():
    template = Template(0.2, 0)
    await template.start()
    first = template.pid
    asking = asyncio.ensure_future(template.fork())  # waits for the imports
    await asyncio.sleep(0.05)
    async with asyncio.timeout(20):
        await template.stop()
        with pytest.raises(OSError, match="stopped"):
            await asking
    await ended(first)
    assert template.pid == 0


async def test_a_worker_without_a_task_says_nothing(template):
    _, reader, writer = await born(template)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.7):  # three beats
            await reader.readline()
    writer.close()
