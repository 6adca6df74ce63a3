"""Whose turn it is at the issuer."""

import asyncio

import pytest

from doma.auth.turns import Turns, near
from doma.core.errors import TooManyRequests


async def test_one_address_makes_no_other_wait_behind_all_it_asks():
    turns, order, go = Turns(places=1), [], asyncio.Event()

    async def work(address):
        async with turns.of(address):
            order.append(address)
            await go.wait()

    tasks = [asyncio.create_task(work(who)) for who in ("10.0.0.1",) * 4 + ("10.0.0.2", "10.0.0.3")]
    await asyncio.sleep(0)
    assert order == ["10.0.0.1"], "one at once"
    go.set()
    await asyncio.gather(*tasks)
    assert order == ["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.1", "10.0.0.1"]


async def test_a_line_has_an_end_and_who_leaves_it_takes_no_turn_along():
    turns = Turns(places=1, line=2)
    entered = []

    async def work(address):
        async with turns.of(address):
            entered.append(address)

    async with turns.of("10.0.0.1"):
        waiting = [asyncio.create_task(work(f"2001:db8::{n}")) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests, match="2001:db8::: 2 requests wait"):
            await work("2001:db8::5")
        other = asyncio.create_task(work("10.0.0.2"))
        await asyncio.sleep(0)
        waiting[0].cancel()
    # the turn was given to the second already: it leaves as well, and hands it on
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await other
    await work("10.0.0.3")
    assert entered == ["10.0.0.2", "10.0.0.3"]


def test_what_is_no_address_is_counted_as_it_is():
    assert [near(""), near("fe80::1%eth0"), near("x")] == ["", "fe80::", "x"]
