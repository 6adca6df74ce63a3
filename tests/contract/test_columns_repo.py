"""What the rows of column delivery promise, on both databases: counted once, fenced, fair, in order."""

import importlib
import random
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import select, update

from doma.columns import cache_repo, dataset_repo, repo, work_repo
from doma.columns.finder import FoundFile, Lookup
from doma.columns.model import FileState, Grant, Outcome, Progress, State, Submission
from doma.columns.plan import compile_text
from doma.columns.tables import files, requests
from doma.db import outbox
from doma.db.engine import Database
from doma.db.tables import metadata

COUNT = "(call Count (call EventDataset 'x' 'Events'))"
DIGEST = compile_text(COUNT).digest
OUTCOME = Outcome("v1", rows=7, bytes=70)


def add(db: Database, name: str, files: int, user: str = "alice", at: float = 1.0) -> None:
    ask = Submission(COUNT, tuple(f"https://a/{i}.root" for i in range(files)))
    grant = Grant("https://i", user, ("storage.read:/",))
    db.run_sync(lambda tx: repo.add(tx, name, grant, ask, DIGEST, at))


def take(db: Database, worker: str, now: float, limit: int = 1) -> list[work_repo.Job]:
    return db.run_sync(lambda tx: work_repo.take(tx, worker, now, 30.0, limit))


def done(db: Database, job: work_repo.Job, now: float = 60.0) -> bool:
    path = f"/{job.request}/{job.number}"
    result = work_repo.Published(f"n{job.number}", path, "o1", OUTCOME)
    (state,) = db.run_sync(lambda tx: work_repo.done(tx, [(job, result, now)]))
    return state is not None


def request(db: Database, name: str, user: str = "alice"):
    return db.look_sync(lambda tx: repo.get(tx, name, f"https://i#{user}"))


def test_the_migration_makes_the_tables_of_the_code(database):
    def differences(tx):
        found = compare_metadata(MigrationContext.configure(tx), metadata)
        return [d for d in found if "column_" in str(d)]

    assert database.look_sync(differences) == []


def test_a_late_answer_of_an_earlier_attempt_changes_nothing(database):
    add(database, "r", 2)
    (first,) = take(database, "one", 10.0)
    again = take(database, "two", 50.0, 2)
    assert {(j.file, j.attempt) for j in again} == {(first.file, 2), (first.file + 1, 1)}
    held = [(first.file, first.attempt, 81.0), (again[0].file, again[0].attempt, 81.0)]
    assert database.run_sync(lambda tx: work_repo.renew(tx, held)) == [False, True]
    assert not done(database, first)
    assert not database.run_sync(lambda tx: work_repo.failed(tx, first, "late", 52.0))
    assert not database.run_sync(lambda tx: work_repo.again(tx, first, "late"))
    for job in again:
        assert done(database, job)
        assert not done(database, job)
    found = request(database, "r")
    assert (found.completed, found.failed, found.state) == (2, 0, State.COMPLETE)


def test_results_become_visible_at_strictly_growing_times_though_the_clock_stands(database):
    add(database, "r", 5)
    for job in take(database, "w", 10.0, 5):
        done(database, job, 42.0)
    times = [r.visible for r in database.look_sync(lambda tx: repo.results(tx, "r"))]
    assert times == [42_000_000 + i for i in range(5)]
    assert len(database.look_sync(lambda tx: repo.results(tx, "r", times[2]))) == 2


def test_users_get_workers_in_turn_whatever_the_size_of_their_requests(database):
    add(database, "large", 50, "alice", 1.0)
    add(database, "small", 2, "bob", 2.0)
    first = take(database, "w", 10.0, 4)
    assert sorted(j.request for j in first) == ["large", "large", "small", "small"]


def test_a_cancelled_request_is_left_alone_and_what_was_done_stays(database):
    add(database, "r", 3)
    one, two = take(database, "w", 10.0, 2)
    assert done(database, one)
    database.run_sync(lambda tx: repo.cancel(tx, "r", 61.0))
    assert not done(database, two)
    assert take(database, "w", 1000.0, 5) == []
    found = request(database, "r")
    assert (found.state, found.completed, found.finished) == (State.CANCELED, 1, 61.0)


def test_a_result_is_known_to_the_same_question_only(database):
    add(database, "r", 1)
    (job,) = take(database, "w", 10.0)
    done(database, job)
    add(database, "s", 1, "bob")
    (same,) = take(database, "w", 70.0)
    ((hit,),) = database.look_sync(lambda tx: cache_repo.known(tx, [(same.question, [same.url], 0.0)]))
    assert (hit.version, hit.path, hit.events) == ("v1", "/r/0", 7)
    database.run_sync(lambda tx: repo.remove(tx, "r", 80.0))
    assert database.look_sync(lambda tx: cache_repo.known(tx, [(same.question, [same.url], 0.0)])) == [[]]
    assert request(database, "r") is None


def test_nobody_else_sees_a_request(database):
    add(database, "r", 1)
    assert request(database, "r", "mallory") is None
    assert database.look_sync(lambda tx: repo.listed(tx, "https://i#mallory", 10)) == []
    assert [r.id for r in database.look_sync(lambda tx: repo.listed(tx, "https://i#alice", 10))] == ["r"]


def test_every_change_is_told_to_its_owner_in_the_same_transaction(database):
    add(database, "r", 2)
    one, two = take(database, "w", 10.0, 2)
    done(database, one)
    database.run_sync(lambda tx: work_repo.failed(tx, two, "torn", 61.0))
    told = database.look_sync(lambda tx: outbox.after(tx, 0))
    assert [e.kind for _, e, _ in told] == [
        "request.submitted",
        "request.started",
        "request.advanced",
        "request.finished",
    ]
    assert {e.owner for _, e, _ in told} == {"https://i#alice"}
    assert request(database, "r").failure == "https://a/1.root: torn"


@pytest.mark.parametrize("seed", range(3))
def test_random_walks_never_count_a_file_twice(database, seed):
    """Claims, late answers, failures and retries in any order: the counters are the rows."""
    rng = random.Random(seed)
    add(database, "r", 4)
    now, jobs = 10.0, []
    for _ in range(60):
        now += rng.choice([1.0, 40.0])
        jobs += take(database, f"w{rng.randrange(3)}", now, 2)
        for job in rng.sample(jobs, min(len(jobs), 2)):
            act = rng.choice(["done", "failed", "again", "renew"])
            if act == "done":
                done(database, job, now)
            elif act == "failed":
                database.run_sync(lambda tx, job=job: work_repo.failed(tx, job, "x", now))  # noqa: B023
            elif act == "again":
                database.run_sync(lambda tx, job=job: work_repo.again(tx, job, "x"))
            else:
                held = [(job.file, job.attempt, now + 30.0)]
                database.run_sync(lambda tx, held=held: work_repo.renew(tx, held))
        found = request(database, "r")
        rows = database.look_sync(lambda tx: repo.results(tx, "r"))
        assert found.completed == sum(r.state == "success" for r in rows)
        assert found.failed == sum(r.state == "failure" for r in rows)
        assert found.state.final == (len(rows) == 4)


def test_requests_of_one_user_take_turns_and_nobody_starves_behind_an_older_one(database):
    for name, user in (("old", "alice"), ("new", "alice"), ("other", "bob")):
        add(database, name, 30, user)
    served = []
    for now in range(10, 22):
        (job,) = take(database, "w", float(now))
        served.append(job.request)
        done(database, job, float(now))
    assert {n: served.count(n) for n in ("old", "new", "other")} == {"old": 3, "new": 3, "other": 6}


def test_a_file_that_is_to_rest_is_left_alone_till_then_and_its_attempts_are_kept(database):
    add(database, "r", 1)
    (job,) = take(database, "w", 10.0)
    again = lambda tx: work_repo.again(tx, job, "no answer", 11.0, not_before=15.0)  # noqa: E731
    assert database.run_sync(again)
    assert not database.run_sync(again)
    assert take(database, "w", 14.0) == []
    (job,) = take(database, "w", 16.0)
    assert (job.attempt, job.tries) == (2, 1)
    database.run_sync(lambda tx: work_repo.failed(tx, job, "torn", 17.0, "printed"))
    (row,) = database.look_sync(lambda tx: repo.results(tx, "r"))
    assert [(h["attempt"], h["reason"], h["at"]) for h in row.history] == [
        (1, "no answer", 11.0),
        (2, "torn", 17.0),
    ]
    assert (row.reason, row.log) == ("torn", "printed")


def test_progress_is_written_for_the_attempt_that_runs_only(database):
    add(database, "r", 2)
    one, two = take(database, "w", 10.0, 2)
    news = {(one.file, 1): Progress(5, 10, 100), (two.file, 7): Progress(9, 9, 900)}
    database.run_sync(lambda tx: work_repo.advance(tx, news, 11.0))
    sums = database.look_sync(lambda tx: repo.progress(tx, "r"))
    assert (sums.files, sums.running, sums.entries, sums.passed, sums.read) == (2, 2, 10, 5, 100)
    rows = database.look_sync(lambda tx: repo.all_files(tx, "r", 10))
    assert [(r.number, r.passed, r.moved) for r in rows] == [(0, 5, 11.0), (1, 0, None)]


NAME = dataset_repo.Name("catalogue", "catalogue://d")


def _ask_for_dataset(database, name: str, first: bool) -> int:
    grant = Grant("https://i", "alice", ())
    ask = Submission(COUNT, (), did=NAME.name)

    def store(tx):
        held, made = dataset_repo.hold(tx, NAME, grant, 5.0, 1e9)
        assert made is first
        state = State.LOOKUP if made else State.PENDING
        repo.add(tx, name, grant, ask, DIGEST, 5.0, dataset=held.id, state=state)
        return held.id

    made: int = database.run_sync(store)
    return made


def test_requests_wait_for_one_look_up_and_go_on_with_its_files_and_replicas(database):
    id_ = _ask_for_dataset(database, "one", True)
    assert _ask_for_dataset(database, "two", False) == id_
    assert [request(database, n).state for n in ("one", "two")] == [State.LOOKUP, State.PENDING]
    assert take(database, "w", 10.0, 5) == []
    assert database.run_sync(lambda tx: repo.stranded(tx, 10.0)) == []
    (work,) = database.run_sync(lambda tx: dataset_repo.take(tx, "w", 10.0, 30.0, 5))
    found = [FoundFile("f", ("https://a/f.root", "https://b/f.root"))]

    def complete(tx):
        assert dataset_repo.complete(tx, work, found, 11.0)
        repo.settled(tx, id_, 11.0)

    database.run_sync(complete)
    for name in ("one", "two"):
        ready = request(database, name)
        assert (ready.state, ready.files) == (State.SUBMITTED, 1)
    jobs = take(database, "w", 12.0, 5)
    assert {(j.request, j.url, j.replicas, j.dataset) for j in jobs} == {
        (n, "https://a/f.root", ("https://b/f.root",), id_) for n in ("one", "two")
    }


def test_a_dataset_that_does_not_exist_makes_its_requests_bad_with_the_reason(database):
    id_ = _ask_for_dataset(database, "one", True)
    (work,) = database.run_sync(lambda tx: dataset_repo.take(tx, "w", 10.0, 30.0, 5))

    def fail(tx):
        assert dataset_repo.fail(tx, work, Lookup.MISSING, "no such dataset", 11.0)
        repo.settled(tx, id_, 11.0)

    database.run_sync(fail)
    found = request(database, "one")
    assert (found.state, found.failure, found.finished) == (State.BAD, "no such dataset", 11.0)


def test_a_request_on_which_nothing_works_is_ended_with_what_its_files_say(database):
    add(database, "lost", 2)
    add(database, "counted", 1)
    add(database, "busy", 1)
    for job in take(database, "w", 10.0, 9):
        assert job.request == "busy" or done(database, job)
    database.run_sync(
        lambda tx: tx.execute(files.delete().where(files.c.request == "lost", files.c.number == 1))
    )
    wrong = {"completed": 0, "state": State.RUNNING, "finished": None}
    mine = requests.c.id.in_(["lost", "counted"])
    database.run_sync(lambda tx: tx.execute(requests.update().where(mine).values(**wrong)))
    assert set(database.run_sync(lambda tx: repo.stranded(tx, 99.0))) == {"lost", "counted"}
    assert [request(database, n).state for n in ("lost", "counted")] == [State.FATAL, State.COMPLETE]
    assert "1 of its files are lost" in request(database, "lost").failure
    assert not request(database, "busy").state.final


def test_a_cached_result_is_for_the_same_language_and_format_and_ages_by_its_last_use(database):
    add(database, "r", 1)
    (job,) = take(database, "w", 10.0)
    done(database, job, 60.0)
    q, urls = job.question, [job.url]
    look = lambda question, since=0.0: database.look_sync(  # noqa: E731
        lambda tx: cache_repo.known(tx, [(question, urls, since)])[0]
    )
    (hit,) = look(q)
    assert look(replace(q, format="root-file")) == look(replace(q, codegen="python")) == []
    assert look(q, 61.0) == []
    database.run_sync(lambda tx: cache_repo.used(tx, [hit.key], 70.0))
    assert look(q, 61.0) == [hit]
    assert database.look_sync(lambda tx: cache_repo.old(tx, 70.0)) == []
    assert database.look_sync(lambda tx: cache_repo.surplus(tx, 0)) == []
    database.run_sync(lambda tx: cache_repo.shelve(tx, hit, "o2"))
    (shelved,) = database.look_sync(lambda tx: cache_repo.surplus(tx, 69))
    assert (shelved.path, shelved.object_version) == (f"/.cache/{hit.key}", "o2")
    assert database.look_sync(lambda tx: cache_repo.surplus(tx, 70)) == []
    database.run_sync(lambda tx: repo.remove(tx, "r", 80.0))
    assert look(q) == [shelved]


def test_what_a_user_has_unfinished_is_counted_until_it_ends(database):
    add(database, "r", 3)
    add(database, "other", 5, user="bob")
    assert database.look_sync(lambda tx: repo.unfinished(tx, "https://i#alice")) == 4
    (job,) = take(database, "w", 10.0)
    assert done(database, job)
    assert database.look_sync(lambda tx: repo.unfinished(tx, "https://i#alice")) in {3, 4}
    database.run_sync(lambda tx: repo.cancel(tx, "r", 61.0))
    assert database.look_sync(lambda tx: repo.unfinished(tx, "https://i#alice")) == 0


def asked(job: work_repo.Job, owner: str, now: float) -> cache_repo.Asked:
    return cache_repo.Asked(job.question, (job.url,), 0.0, now, job.key, owner, now + 30.0)


def test_one_process_leads_and_the_next_follows_when_its_lease_has_run_out(database):
    add(database, "r", 1)
    add(database, "s", 1, "bob")
    one, two = take(database, "one", 10.0) + take(database, "two", 10.0)
    assert one.key == two.key
    look = lambda who, now: database.run_sync(  # noqa: E731
        lambda tx: cache_repo.known_or_led(tx, [asked(one, who, now)])
    )
    assert look("one", 10.0) == [([], True)]
    assert look("two", 11.0) == [([], False)]
    assert look("one", 12.0) == [([], True)]
    database.run_sync(lambda tx: cache_repo.keep_lead(tx, "one", 60.0))
    assert look("two", 50.0) == [([], False)]
    assert look("two", 61.0) == [([], True)]
    # The late one neither keeps nor ends what another has taken over.
    database.run_sync(lambda tx: cache_repo.keep_lead(tx, "one", 200.0))
    database.run_sync(lambda tx: cache_repo.end_lead(tx, [(one.key, "one")]))
    assert look("one", 70.0) == [([], False)]
    assert done(database, two, 71.0)
    ((found, led),) = look("one", 72.0)
    assert (len(found), led) == (1, False)


@pytest.mark.parametrize("end", ["failed", "again", "release"])
def test_who_ends_without_a_result_gives_up_the_lead(database, end):
    add(database, "r", 1)
    (job,) = take(database, "one", 10.0)
    look = lambda who: database.run_sync(  # noqa: E731
        lambda tx: cache_repo.known_or_led(tx, [asked(job, who, 11.0)])
    )
    assert look("one") == [([], True)]
    assert database.look_sync(work_repo.holders) == ["one"]
    ends = {
        "failed": lambda tx: work_repo.failed(tx, job, "torn", 12.0),
        "again": lambda tx: work_repo.again(tx, job, "torn", 12.0),
        "release": lambda tx: work_repo.release(tx, ["one"], 12.0),
    }
    database.run_sync(ends[end])
    assert look("two") == [([], True)]


def test_many_that_ask_the_same_at_once_have_one_leader(database):
    add(database, "r", 2)
    jobs = take(database, "one", 10.0, 2)
    wanted = [asked(j, who, 11.0) for who in ("one",) for j in (*jobs, *jobs)]
    assert [led for _, led in database.run_sync(lambda tx: cache_repo.known_or_led(tx, wanted))] == [True] * 4
    other = [asked(j, "two", 11.0) for j in reversed(jobs)]
    assert [led for _, led in database.run_sync(lambda tx: cache_repo.known_or_led(tx, other))] == [False] * 2


def by_rows(rows) -> dict[str, object]:
    """What the counters of a request have to say, by its files."""
    ended = [r for r in rows if r.state in {"success", "failure", "canceled"}]
    made = [r for r in ended if r.state == "success"]
    sums = {n: sum(getattr(r, n) for r in ended) for n in ("entries", "passed", "read", "bytes", "events")}
    took = [r.seconds for r in made]
    return sums | {
        "completed": len(made), "failed": sum(r.state == "failure" for r in ended),
        "pushed": sum(r.pushed for r in made), "seconds": pytest.approx(sum(took)),
        "quickest": min(took, default=None), "slowest": max(took, default=None),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_random_walks_leave_counters_that_are_the_sums_over_the_files(database, seed):
    """Claims, progress, results, failures, retries, a stop, and a loss that housekeeping finds."""
    rng = random.Random(seed)
    add(database, "r", 5)
    now, jobs = 10.0, []
    wanted = select(requests).where(requests.c.id == "r")

    def act(kind: str, job: work_repo.Job) -> None:
        n = rng.randrange(1, 100)
        outcome = Outcome(
            "v", rows=n, bytes=7 * n, read=3 * n, seconds=n / 8, events=2 * n, pushed=n % 2 == 0
        )
        made = work_repo.Published(f"n{job.number}", "/r/n", "o", outcome)
        told = {(job.file, job.attempt): Progress(n, 100, 5 * n)}
        work = {
            "done": lambda tx: work_repo.done(tx, [(job, made, now)]),
            "failed": lambda tx: work_repo.failed(tx, job, "x", now),
            "again": lambda tx: work_repo.again(tx, job, "x", now),
            "advance": lambda tx: work_repo.advance(tx, told, now),
            "release": lambda tx: work_repo.release(tx, ["w"], now),
            "cancel": lambda tx: repo.cancel(tx, "r", now),
        }
        database.run_sync(work[kind])

    kinds = ["done", "failed", "again", "release", *["advance"] * 4]
    for step in range(40):
        now += 40.0
        jobs += take(database, "w", now, 2)
        if jobs:
            act("cancel" if seed == 3 and step == 6 else rng.choice(kinds), rng.choice(jobs))
        (row,) = database.look_sync(lambda tx: tx.execute(wanted).mappings().all())
        rows = database.look_sync(lambda tx: repo.all_files(tx, "r", 10))
        says = by_rows(rows)
        assert {name: row[name] for name in says} == says
        far = database.look_sync(lambda tx: repo.progress(tx, "r"))
        runs = [r for r in rows if r.state == "running"]
        assert (far.running, far.passed) == (len(runs), says["passed"] + sum(r.passed for r in runs))
    # Whatever was lost: housekeeping counts the files themselves.
    lost = {"completed": 0, "failed": 0, "read": 5, "seconds": 0.5, "state": "Running", "finished": None}
    gone = [FileState.WAITING, FileState.RUNNING]
    database.run_sync(lambda tx: tx.execute(update(requests).values(**lost)))
    database.run_sync(
        lambda tx: tx.execute(update(files).where(files.c.state.in_(gone)).values(state="failure"))
    )
    assert database.run_sync(lambda tx: repo.stranded(tx, now)) == ["r"]
    (row,) = database.look_sync(lambda tx: tx.execute(wanted).mappings().all())
    says = by_rows(database.look_sync(lambda tx: repo.all_files(tx, "r", 10)))
    assert {name: row[name] for name in says} == says


def test_requests_of_an_older_database_get_their_counters(database):
    add(database, "r", 2)
    one, two = take(database, "w", 10.0, 2)
    done(database, one)
    database.run_sync(lambda tx: work_repo.advance(tx, {(two.file, two.attempt): Progress(3, 9, 20)}, 11.0))
    database.run_sync(lambda tx: work_repo.failed(tx, two, "torn", 12.0))
    wanted = select(requests).where(requests.c.id == "r")
    before = database.look_sync(lambda tx: dict(tx.execute(wanted).mappings().one()))
    assert (before["events"], before["read"], before["bytes"]) == (7, 20, 70)
    revision = importlib.import_module("doma.db.migrations.versions.0007_column_counters")

    def again(tx):
        with Operations.context(MigrationContext.configure(tx)):
            revision.downgrade()
            revision.upgrade()

    database.run_sync(again)
    assert database.look_sync(lambda tx: dict(tx.execute(wanted).mappings().one())) == before
