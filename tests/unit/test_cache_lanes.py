"""Slots at the origins: shares, turns, rest (cases O2, O3, O4, O9 of the cache contract)."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doma.cache.lanes import FAILURES, REST, Lanes, Turn
from doma.core.errors import NotFound, OriginFailed, Replaced, StorageUnavailable, TooManyRequests


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Scene:
    """Requests that end when the test says so; ``running``: origin and caller of those that hold a slot."""

    def __init__(self, slots=8, **settings):
        self.clock = Clock()
        self.lanes = Lanes(slots, self.clock, **settings)
        self.running = []
        self._ends = {}
        self._tasks = []

    async def ask(self, origin, who="ada", *, urgent=True):
        turn = Turn(who, urgent=urgent)
        task = asyncio.create_task(self._one(origin, turn))
        self._tasks.append(task)
        await settle()
        return turn, task

    async def _one(self, origin, turn):
        async with self.lanes.slot(origin, turn):
            end = self._ends[turn] = asyncio.get_running_loop().create_future()
            self.running.append((origin, turn.who))
            try:
                await end
            finally:
                self.running.remove((origin, turn.who))
                del self._ends[turn]

    async def end(self, turn, error=None):
        if error is None:
            self._ends[turn].set_result(None)
        else:
            self._ends[turn].set_exception(error)
        await settle()

    def count(self, origin):
        return sum(1 for place, _ in self.running if place == origin)

    async def close(self):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def scene():
    scene = Scene()
    yield scene
    await scene.close()


async def fail(scene, origin, error, times=1):
    for _ in range(times):
        turn, task = await scene.ask(origin)
        await scene.end(turn, error)
        assert task.exception() is error


async def test_o3_an_origin_alone_leaves_room_and_keeps_a_quarter_when_others_come(scene):
    slow = [await scene.ask("slow") for _ in range(20)]
    assert scene.count("slow") == 7  # 90 % of 8
    for _ in range(3):
        await scene.ask("quick")
    assert scene.count("quick") == 1
    for turn, _ in slow[:5]:
        await scene.end(turn)
    assert scene.count("quick") == 3
    assert scene.count("slow") == 5


async def test_o2_an_origin_that_has_its_share_and_stalls_does_not_hold_others_back(scene):
    for _ in range(20):
        await scene.ask("stalled")
    first, _ = await scene.ask("good")
    await scene.end(first)
    assert scene.count("good") == 0
    stalled = scene.count("stalled")
    for _ in range(8):
        await scene.ask("good")
    assert scene.count("good") == 8 - stalled >= 1


async def test_o9_the_caller_with_the_fewest_requests_is_next(scene):
    greedy = [await scene.ask("site", "greedy") for _ in range(30)]
    await scene.ask("site", "modest")
    assert ("site", "modest") not in scene.running
    await scene.end(greedy[0][0])
    assert ("site", "modest") in scene.running


async def test_o4_a_full_queue_is_refused_with_a_time_to_come_again_and_one_caller_gets_half():
    scene = Scene(slots=1, waiting=4)
    await scene.ask("site", "ada")
    for _ in range(2):
        await scene.ask("site", "ada")
    _, refused = await scene.ask("site", "ada")
    with pytest.raises(TooManyRequests) as caught:
        await refused
    assert caught.value.retry_after >= 1
    for _ in range(2):
        await scene.ask("site", "bob")
    _, refused = await scene.ask("site", "cid")
    with pytest.raises(TooManyRequests):
        await refused
    await scene.close()


async def test_five_failures_in_a_row_give_an_origin_rest_and_one_request_tries_it_after_that(scene):
    away = StorageUnavailable("site: nobody answers")
    await fail(scene, "site", away, FAILURES - 1)
    turn, task = await scene.ask("site")
    await scene.end(turn)
    await task
    await fail(scene, "site", away, FAILURES)
    assert scene.lanes.resting("site") == REST
    _, refused = await scene.ask("site")
    with pytest.raises(StorageUnavailable) as caught:
        await refused
    assert caught.value.retry_after == REST
    assert scene.lanes.resting("other") == 0

    scene.clock.now += REST
    trial, _ = await scene.ask("site")
    assert scene.count("site") == 1
    _, second = await scene.ask("site")
    with pytest.raises(StorageUnavailable):
        await second
    await scene.end(trial)
    await scene.ask("site")
    await scene.ask("site")
    assert scene.count("site") == 2


async def test_a_trial_that_fails_gives_rest_again_and_one_that_is_cancelled_does_not_block(scene):
    away = StorageUnavailable("site: nobody answers")
    await fail(scene, "site", away, FAILURES)
    scene.clock.now += REST
    await fail(scene, "site", away)
    assert scene.lanes.resting("site") == REST
    scene.clock.now += REST
    _, trial = await scene.ask("site")
    trial.cancel()
    await settle()
    await scene.ask("site")
    assert scene.count("site") == 1


async def test_those_who_wait_hear_at_once_that_the_origin_is_left_alone(scene):
    asked = [await scene.ask("site") for _ in range(20)]
    for turn, _ in asked[:FAILURES]:
        await scene.end(turn, StorageUnavailable("site: reset"))
    with pytest.raises(StorageUnavailable, match="left alone"):
        await asked[-1][1]


@pytest.mark.parametrize(
    "word", [NotFound("no"), Replaced("new"), OriginFailed("answered 500", status=500)], ids=lambda e: e.code
)
async def test_a_word_about_one_file_says_nothing_against_the_origin(scene, word):
    await fail(scene, "site", word, 2 * FAILURES)
    assert scene.lanes.resting("site") == 0


async def test_what_nobody_waits_for_comes_last_and_takes_half_until_somebody_does(scene):
    ahead = [await scene.ask("site", urgent=False) for _ in range(10)]
    assert scene.count("site") == 3  # half of 7
    for _ in range(4):
        await scene.ask("site")
    assert scene.count("site") == 7
    _, waiting = await scene.ask("site")
    scene.lanes.hurry(ahead[-1][0])
    await scene.end(ahead[0][0])
    await scene.end(ahead[1][0])
    assert scene.count("site") == 7
    assert ahead[-1][0] in scene._ends
    assert ahead[5][0] not in scene._ends
    assert not waiting.done()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "ahead", "end", "fail", "cancel", "hurry"]), st.integers(0, 2),
            st.integers(0, 50),
        ),
        max_size=80,
    )
)  # fmt: skip
def test_any_sequence_of_ends_gives_every_slot_back(steps):
    async def walk():
        scene, asked = Scene(slots=4, waiting=10), []
        for act, number, pick in steps:
            running = list(scene._ends)
            if act in {"ask", "ahead"}:
                asked.append(await scene.ask(f"o{number}", f"u{pick % 3}", urgent=act == "ask"))
            elif act in {"end", "fail"} and running:
                error = StorageUnavailable("away") if act == "fail" else None
                await scene.end(running[pick % len(running)], error)
            elif asked and act == "cancel":
                asked[pick % len(asked)][1].cancel()
                await settle()
            elif asked and act == "hurry":
                scene.lanes.hurry(asked[pick % len(asked)][0])
                await settle()
            assert len(scene.running) <= 4
            waiting = [task for turn, task in asked if not task.done() and turn not in scene._ends]
            assert len(scene.running) > 0 or not waiting
        await scene.close()
        assert not scene.running
        assert scene.lanes._running == 0
        scene.clock.now += 2 * REST
        for number in range(3):
            turn, task = await scene.ask(f"o{number}")
            await scene.end(turn)
            await task

    asyncio.run(walk())
