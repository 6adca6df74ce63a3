"""What the rows of datasets promise, on both databases: one look-up a name, crash-safe, owners apart."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, event

from doma.columns import dataset_catalogue as catalogue
from doma.columns import dataset_repo as repo
from doma.columns import repo as requests
from doma.columns.dataset_repo import Name
from doma.columns.datasets import Datasets
from doma.columns.finder import FoundFile, Lookup
from doma.columns.model import Grant, Submission
from doma.core import config
from doma.core.errors import BadQuery, BadRequest, Conflict, LimitExceeded, NotFound, StorageUnavailable
from doma.db.tables import metadata

ALICE, BOB = (Grant("https://i", name, ("storage.read:/",)) for name in ("alice", "bob"))
EVE = Grant("https://elsewhere", "eve")
NAME = Name("test", "test://s:d")
FILES = [FoundFile(f"s:{i}", (f"root://a//{i}", f"https://b/{i}"), 10 + i, 5) for i in range(3)]


def held(db, name=NAME, now=1.0, age=100.0, grant=ALICE):
    return db.run_sync(lambda tx: repo.hold(tx, name, grant, now, age))


def taken(db, now=2.0, worker="w"):
    return db.run_sync(lambda tx: repo.take(tx, worker, now, 30.0, 10))


def completed(db, work, files=FILES, now=3.0):
    return db.run_sync(lambda tx: repo.complete(tx, work, files, now))


def test_the_migration_makes_the_tables_of_the_code(database):
    def differences(tx):
        found = compare_metadata(MigrationContext.configure(tx), metadata)
        return [d for d in found if "dataset" in str(d) or "catalogue" in str(d)]

    assert database.look_sync(differences) == []


def test_a_name_is_looked_up_once_however_many_ask(database):
    (first, made), (second, again) = held(database), held(database, now=2.0, grant=BOB)
    assert (first.id, made, again) == (second.id, True, False)
    (work,) = taken(database)
    assert taken(database) == []
    assert completed(database, work)
    found, made = held(database, now=50.0)
    assert (found.state, found.files, found.bytes, found.events, made) == (Lookup.COMPLETE, 3, 33, 15, False)
    inputs = database.look_sync(lambda tx: repo.inputs(tx, found.id))
    assert [(i.url, i.replicas) for i in inputs] == [
        (f"root://a//{i}", (f"https://b/{i}",)) for i in range(3)
    ]


def test_an_answer_counts_for_its_age_and_a_failed_look_up_for_nobody_else(database):
    (first, _) = held(database)
    completed(database, taken(database)[0])
    (old, made) = held(database, now=200.0)
    assert made
    assert old.id != first.id
    assert database.look_sync(lambda tx: repo.found(tx, first.id)).stale
    (work,) = taken(database, now=201.0)
    assert database.run_sync(lambda tx: repo.fail(tx, work, Lookup.MISSING, "gone", 202.0))
    failed = database.look_sync(lambda tx: repo.found(tx, old.id))
    assert (failed.state, failed.reason, failed.stale) == (Lookup.MISSING, "gone", False)
    assert held(database, now=203.0)[1]


def test_a_killed_look_up_goes_on_elsewhere_and_its_late_word_is_ignored(database):
    held(database)
    (first,) = taken(database, now=2.0, worker="one")
    assert taken(database, now=20.0, worker="two") == []
    (second,) = taken(database, now=40.0, worker="two")
    assert (second.id, second.attempt) == (first.id, 2)
    assert not completed(database, first, FILES[:1])
    assert not database.run_sync(lambda tx: repo.fail(tx, first, Lookup.FAILED, "late", 41.0))
    assert completed(database, second)
    assert len(database.look_sync(lambda tx: repo.inputs(tx, first.id))) == 3


def test_realms_do_not_share_answers(database):
    one, other = (held(database, Name("doma", "doma://x", realm))[0] for realm in ("a", "b"))
    assert one.id != other.id


def test_equal_file_lists_are_one_dataset(database):
    urls = [f"https://a/{i}" for i in range(700)]
    one, same, other = (
        database.run_sync(lambda tx, u=u: repo.hold_list(tx, u, ALICE, 1.0)) for u in (urls, urls, urls[1:])
    )
    assert one.id == same.id != other.id
    assert (one.finder, one.files, one.state) == ("user", 700, Lookup.COMPLETE)
    found = database.look_sync(lambda tx: repo.files(tx, one.id))
    assert [f.file.replicas for f in found] == [(u,) for u in urls]


def ask(db, id_, grant, dataset):
    ask_ = Submission("x", (), did="test://s:d")
    from doma.columns.tables import requests as table

    db.run_sync(lambda tx: requests.add(tx, id_, grant, ask_, "0" * 64, 1.0))
    db.run_sync(lambda tx: tx.execute(table.update().where(table.c.id == id_).values(dataset=dataset)))


def test_owners_see_the_datasets_of_their_own_requests_only(database):
    found, _ = held(database)
    ask(database, "r", ALICE, found.id)
    assert database.look_sync(lambda tx: repo.seen(tx, found.id, ALICE.owner)).id == found.id
    assert database.look_sync(lambda tx: repo.seen(tx, found.id, BOB.owner)) is None
    assert [d.id for d in database.look_sync(lambda tx: repo.listed(tx, ALICE.owner, None, stale=False))] == [
        found.id
    ]
    assert database.look_sync(lambda tx: repo.listed(tx, ALICE.owner, "other", stale=True)) == []
    assert database.run_sync(lambda tx: repo.mark_stale(tx, found.id))
    assert not database.run_sync(lambda tx: repo.mark_stale(tx, found.id))
    assert database.look_sync(lambda tx: repo.listed(tx, ALICE.owner, None, stale=False)) == []
    assert len(database.look_sync(lambda tx: repo.listed(tx, ALICE.owner, None, stale=True))) == 1
    assert held(database)[1]


def test_datasets_that_no_request_uses_go_after_their_time(database):
    (kept, _), (gone, _), (young, _) = (held(database, Name("test", n)) for n in ("a", "b", "c"))
    ask(database, "r", ALICE, kept.id)
    for work in taken(database):
        completed(database, work)
    held(database, Name("test", "c"), now=90.0)
    assert database.run_sync(lambda tx: repo.tidy(tx, 50.0)) == 1
    left = [
        database.look_sync(lambda tx, i=i: repo.found(tx, i)) is not None
        for i in (kept.id, gone.id, young.id)
    ]
    assert left == [True, False, True]
    assert database.look_sync(lambda tx: repo.files(tx, gone.id)) == []


# --- the catalogue ---


def put(db, grant, name, files=FILES, **options):
    return db.run_sync(lambda tx: catalogue.put(tx, grant, name, files, 5.0, **options))


def names(db, grant):
    return [(e.name, e.owner == grant.owner) for e in db.look_sync(lambda tx: catalogue.listed(tx, grant))]


def test_datasets_are_private_until_shared_and_shared_with_ones_vo_only(database):
    entry = put(database, ALICE, "z")
    assert (entry.files, entry.bytes, entry.events, entry.shared) == (3, 33, 15, False)
    assert (names(database, ALICE), names(database, BOB)) == ([("z", True)], [])
    put(database, ALICE, "z", [], shared=True)
    assert (names(database, BOB), names(database, EVE)) == ([("z", False)], [])
    with pytest.raises(NotFound):
        database.look_sync(lambda tx: catalogue.files(tx, EVE, "z"))
    with pytest.raises(NotFound):
        database.run_sync(lambda tx: catalogue.remove(tx, BOB, "z"))
    with pytest.raises(Conflict):
        put(database, BOB, "z", shared=True)
    put(database, BOB, "z", FILES[:1])
    assert len(database.look_sync(lambda tx: catalogue.files(tx, BOB, "z"))) == 1  # the own one goes first
    assert len(database.look_sync(lambda tx: catalogue.files(tx, ALICE, "z"))) == 3


def test_files_are_added_by_name_or_replaced(database):
    put(database, ALICE, "z")
    moved = FoundFile("s:1", ("https://new/1",))
    assert put(database, ALICE, "z", [moved, FoundFile("s:9", ("https://new/9",))]).files == 4
    found = {f.name: f.replicas for f in database.look_sync(lambda tx: catalogue.files(tx, ALICE, "z"))}
    assert found["s:1"] == ("https://new/1",)
    assert put(database, ALICE, "z", [moved], replace=True).files == 1


def test_a_changed_catalogue_makes_its_answers_stale(database):
    entry, _ = held(database, Name("doma", "doma://z?files=2", ALICE.owner))
    completed(database, taken(database)[0])
    like, _ = held(database, Name("doma", "doma://zz", ALICE.owner))
    put(database, ALICE, "z")
    assert database.look_sync(lambda tx: repo.found(tx, entry.id)).stale
    assert not database.look_sync(lambda tx: repo.found(tx, like.id)).stale


@pytest.mark.parametrize("name", ["", "a b", "-x", "a?files=2", "é", "x" * 251, "a\n"])
def test_names_have_a_grammar(database, name):
    with pytest.raises(BadRequest):
        put(database, ALICE, name)


# --- the loop ---


class Finder:
    """A catalogue whose answers a test writes."""

    word, private = "test", False

    def __init__(self):
        self.asked, self.answers, self.gate = [], {}, asyncio.Event()
        self.gate.set()

    async def find(self, name, grant):
        self.asked.append(name)
        await self.gate.wait()
        answer = self.answers.get(name, NotFound("no such dataset"))
        if isinstance(answer, list) and answer and isinstance(answer[0], Exception):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self):
        pass


@asynccontextmanager
async def running(database, finder, settled=lambda tx, id_, now: None, **section):
    made = Datasets(database, [finder], config.Datasets(default="test", **section), settled)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def ended(database, id_):
    async with asyncio.timeout(20):
        while not (found := await database.look(lambda tx: repo.found(tx, id_))).state.final:
            await asyncio.sleep(0.01)
    return found


async def looked_up(database, service, did):
    name = service.named(did, ALICE)
    found, _ = await database.run(lambda tx: repo.hold(tx, name, ALICE, time.time(), 1e12))
    service.wake()
    return await ended(database, found.id)


async def test_what_a_catalogue_says_becomes_the_clients_words(database):
    finder = Finder()
    finder.answers = {
        "s:d": list(reversed(FILES)),
        "empty": [],
        "bad": BadRequest("not a name"),
        "trouble": StorageUnavailable("away"),
        "passes": [StorageUnavailable("for a moment"), *FILES],
        "huge": LimitExceeded("a dataset may have at most so many files"),
    }
    async with running(database, finder) as service:
        whole = await looked_up(database, service, "test://s:d")
        part = await looked_up(database, service, "s:d?files=2")
        assert (whole.state, whole.files, part.files) == (Lookup.COMPLETE, 3, 2)
        first = await database.look(lambda tx: repo.inputs(tx, part.id))
        assert [i.url for i in first] == ["root://a//0", "root://a//1"]
        assert (await looked_up(database, service, "empty")).state is Lookup.COMPLETE
        assert (await looked_up(database, service, "missing")).state is Lookup.MISSING
        assert (await looked_up(database, service, "bad")).state is Lookup.BAD
        trouble = await looked_up(database, service, "trouble")
        assert (trouble.state, trouble.reason) == (Lookup.FAILED, "away")
        assert (await looked_up(database, service, "huge")).state is Lookup.FAILED
        assert (await looked_up(database, service, "passes")).state is Lookup.COMPLETE
        assert finder.asked.count("trouble") == 3
        for did in ("other://x", "test://x?files=0", "", " x", "x" * 5000, "a\0b"):
            with pytest.raises(BadQuery):
                service.named(did, ALICE)


async def test_a_stopped_process_gives_its_look_up_to_the_next(database):
    finder = Finder()
    finder.answers["s:d"] = FILES
    finder.gate.clear()
    told = []
    async with running(database, finder) as service:
        found, _ = await database.run(
            lambda tx: repo.hold(tx, service.named("s:d", ALICE), ALICE, time.time(), 1e12)
        )
        service.wake()
        async with asyncio.timeout(20):
            while not finder.asked:
                await asyncio.sleep(0.01)
    finder.gate.set()
    async with running(database, finder, lambda tx, id_, now: told.append(id_)):
        assert (await ended(database, found.id)).files == 3
    assert told == [found.id]
    assert len(finder.asked) == 2


async def test_a_dataset_whose_catalogue_is_gone_ends_nevertheless(database):
    found, _ = await database.run(
        lambda tx: repo.hold(tx, Name("gone", "gone://x"), ALICE, time.time(), 1e12)
    )
    async with running(database, Finder()):
        assert (await ended(database, found.id)).state is Lookup.FAILED


async def test_moved_replicas_are_found_again_with_one_question(database):
    finder = Finder()
    finder.answers["s:d"] = FILES
    async with running(database, finder) as service:
        found = await looked_up(database, service, "s:d")
        assert await service.again(found.id, "root://a//1", ["https://b/1"]) is None  # nothing has moved
    finder.answers["s:d"] = [FoundFile(f.name, (f"https://new/{f.name[2:]}",)) for f in FILES]
    async with running(database, finder) as service:
        before = len(finder.asked)
        moved = await asyncio.gather(*(service.again(found.id, f"root://a//{i}") for i in (0, 1)))
        assert [m.url for m in moved] == ["https://new/0", "https://new/1"]
        assert len(finder.asked) == before + 1


async def test_files_that_are_gone_do_not_read_their_dataset_each(database):
    urls = [f"https://a/{i}" for i in range(30)]
    read = []

    def seen(connection, cursor, statement, *rest):
        if "dataset_files" in statement:
            read.append(statement)

    async with running(database, Finder()) as service:
        listed = await database.run(lambda tx: repo.hold_list(tx, urls, ALICE, 0.0))
        event.listen(Engine, "before_cursor_execute", seen)
        try:
            assert [await service.again(listed.id, url) for url in urls] == [None] * 30
        finally:
            event.remove(Engine, "before_cursor_execute", seen)
    assert len(read) <= 1
