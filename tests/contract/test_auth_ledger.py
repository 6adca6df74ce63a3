"""What the issuer remembers, on both databases: refresh families, revocations, names used once."""

import asyncio
import subprocess
import sys
import textwrap
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import select

from doma.auth.ledger import Ledger
from doma.auth.oauth import OAuthError
from doma.auth.revoked import Revocations
from doma.auth.tables import codes, families, metadata, revoked, rotations

NOW = 1_800_000_000.0
DAY = 86400.0
KEY = b"k" * 32


@pytest.fixture
def ledger(database):
    return Ledger(database, KEY, grace=DAY)


def begin(ledger, **changes):
    return ledger.begin(
        **{
            "client": "fts", "subject": "alice", "scope": "storage.read:/ offline_access", "audience": ["a"],
            "details": {"groups": []}, "now": NOW, "expires": NOW + 30 * DAY, **changes,
        }
    )[1]  # fmt: skip


def test_the_revision_makes_the_tables_that_the_code_uses(database):
    def differences(tx):
        context = MigrationContext.configure(tx, opts={"compare_type": True})
        return [
            d for d in compare_metadata(context, metadata) if d[0] not in {"remove_table", "remove_index"}
        ]

    assert database.run_sync(differences) == []


def test_a_used_token_gives_the_same_next_one_within_the_grace(ledger):
    first = begin(ledger)
    family, second = ledger.rotate(first, "fts", NOW)
    assert (family.subject, family.audience, family.scope) == (
        "alice", ("a",), "storage.read:/ offline_access",
    )  # fmt: skip
    assert second != first
    _, third = ledger.rotate(second, "fts", NOW + 1)
    assert ledger.rotate(first, "fts", NOW + DAY)[1] == second
    assert ledger.rotate(second, "fts", NOW + DAY)[1] == third
    assert ledger.rotate(first, "fts", NOW + DAY)[1] == second


def test_a_token_used_again_after_the_grace_ends_its_family_and_no_other(ledger):
    first, stranger = begin(ledger), begin(ledger)
    _, second = ledger.rotate(first, "fts", NOW)
    with pytest.raises(OAuthError, match="used before") as caught:
        ledger.rotate(first, "fts", NOW + DAY + 1)
    assert caught.value.error == "invalid_grant"
    for token in (first, second):
        with pytest.raises(OAuthError, match="revoked"):
            ledger.rotate(token, "fts", NOW)
        assert ledger.find(token, "fts", NOW) is None
    assert ledger.rotate(stranger, "fts", NOW)


def test_reuse_is_still_noticed_when_the_rotation_was_forgotten(ledger):
    first = begin(ledger)
    _, second = ledger.rotate(first, "fts", NOW)
    ledger.prune(NOW + 2 * DAY)
    with pytest.raises(OAuthError, match="used before"):
        ledger.rotate(first, "fts", NOW + 2 * DAY)
    with pytest.raises(OAuthError, match="revoked"):
        ledger.rotate(second, "fts", NOW + 2 * DAY)


def test_many_users_of_one_token_at_once_all_get_the_same_one(ledger):
    first, got, wrong = begin(ledger), [], []

    def use():
        try:
            got.append(ledger.rotate(first, "fts", NOW)[1])
        except OAuthError as e:
            wrong.append(e)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(got) == 8
    assert len(set(got)) == 1


@pytest.mark.parametrize("spoil", ["forged", "number", "client", "expired", "ended", "other key"])
def test_a_token_that_is_not_good_gives_nothing(ledger, spoil):
    token, client, now = begin(ledger), "fts", NOW
    match spoil:
        case "forged":
            token = token[:-1] + ("A" if token[-1] != "A" else "B")
        case "number":
            token = token.replace(".1.", ".2.")
        case "client":
            client = "rucio"
        case "expired":
            now = NOW + 30 * DAY
        case "ended":
            ledger.end(token, "fts", NOW)
        case _:  # of another key
            token = begin(Ledger(ledger.db, b"x" * 32))
    assert ledger.find(token, client, now) is None
    with pytest.raises(OAuthError) as caught:
        ledger.rotate(token, client, now)
    assert caught.value.error == "invalid_grant"


def test_only_its_own_client_ends_a_family(ledger):
    token = begin(ledger)
    ledger.end(token, "rucio", NOW)
    ledger.end("doma-rt.x", "fts", NOW)
    assert ledger.find(token, "fts", NOW)
    ledger.end(token, "fts", NOW)
    ledger.end(token, "fts", NOW)
    assert ledger.find(token, "fts", NOW) is None


def test_no_token_stands_in_the_tables(ledger):
    first = begin(ledger)
    _, second = ledger.rotate(first, "fts", NOW)
    rows = ledger.db.look_sync(
        lambda tx: [str(row) for t in (families, rotations, codes, revoked) for row in tx.execute(select(t))]
    )
    assert rows
    for token in (first, second):
        assert not any(token.rpartition(".")[2] in row for row in rows)


def test_a_name_can_be_used_once(ledger):
    assert ledger.once("n", "fts", NOW + 60, NOW)
    assert not ledger.once("n", "fts", NOW + 60, NOW)
    ledger.prune(NOW + 61)
    assert ledger.once("n", "fts", NOW + 90, NOW)


def test_what_has_expired_is_forgotten_and_nothing_else(ledger):
    old, young = begin(ledger, expires=NOW + 1), begin(ledger)
    ledger.rotate(young, "fts", NOW)
    ledger.revoke("j1", NOW + 1, NOW)
    ledger.revoke("j2", NOW + 99, NOW)
    ledger.prune(NOW + 2)
    assert ledger.find(old, "fts", NOW) is None
    assert ledger.find(young, "fts", NOW)
    assert ledger.revoked_since(0, 0) == {"j2": NOW + 99}
    assert [ledger.is_revoked(jti) for jti in ("j1", "j2")] == [False, True]


async def test_what_another_process_revokes_is_known_after_the_next_look(database):
    ledger = Ledger(database, KEY)
    ledger.revoke("mine", NOW + 60, NOW)
    told = []
    known = Revocations(ledger, clock=lambda: NOW)
    known.on_new.append(told.append)
    await known.look()
    assert "mine" in known
    program = """
        import sys
        from doma.auth.ledger import Ledger
        from doma.db.engine import Database
        Ledger(Database(sys.argv[1]), b"k" * 32).revoke("theirs", float(sys.argv[2]) + 60, float(sys.argv[2]))
        Ledger(Database(sys.argv[1]), b"k" * 32).revoke("mine", float(sys.argv[2]) + 60, float(sys.argv[2]))
    """
    url = database.url.render_as_string(hide_password=False)
    run = [sys.executable, "-c", textwrap.dedent(program), url, str(NOW)]
    await asyncio.to_thread(subprocess.run, run, check=True, timeout=60)
    assert "theirs" not in known
    await known.look()
    assert "theirs" in known
    assert [set(names) for names in told] == [{"mine"}, {"theirs"}]
