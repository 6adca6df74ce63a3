"""Who may do what: the table of tokens.md §5 and rules T12-T19."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.auth.gate import MEMO, Gate
from doma.auth.model import Capability, Identity, Verb
from doma.auth.scopes import capabilities
from doma.core.errors import ConfigError, Forbidden, InvalidToken, Unauthenticated

ISSUER = "https://iam.example.org/cms"
READ, STAT, CREATE, MODIFY, STAGE, POLL = (
    Verb.READ,
    Verb.STAT,
    Verb.CREATE,
    Verb.MODIFY,
    Verb.STAGE,
    Verb.POLL,
)


def who(scope="", groups=(), issuer=ISSUER):
    listed = tuple(scope.split())
    return Identity(
        issuer, "alice", 9e9, capabilities=capabilities(listed), scopes=listed, groups=tuple(groups), jti="j1"
    )


def allowed(gate, identity, verb, path, is_dir=False):
    """The decision, which must be the same by both roads."""
    try:
        gate.decide(identity, verb, path, is_dir)
    except (Forbidden, Unauthenticated):
        decided = False
    else:
        decided = True
    assert gate.may(identity, verb, path, is_dir) is decided
    return decided


@pytest.fixture
def gate():
    return Gate({ISSUER: ["/"]})


@pytest.mark.parametrize(
    ("scope", "verbs"),
    [
        ("storage.read:/a", {READ, Verb.LIST, STAT, POLL}),
        ("storage.create:/a", {CREATE, STAT, POLL}),
        ("storage.modify:/a", {CREATE, MODIFY, STAT, POLL}),
        ("storage.stage:/a", {STAGE, STAT, POLL}),
        ("storage.poll:/a", {POLL}),
        ("compute.read fts", set()),
        ("", set()),
    ],
)
def test_each_scope_allows_its_row_of_the_table_and_nothing_else(gate, scope, verbs):
    for path in ("/a", "/a/b/c"):
        assert {verb for verb in Verb if allowed(gate, who(scope), verb, path)} == verbs


@pytest.mark.parametrize("path", ["/ab", "/a.b", "/A", "/b", "/", "/b/a", "/a\u0301"])
def test_paths_match_by_component_and_case(gate, path):
    assert not allowed(gate, who("storage.read:/a"), READ, path)


def test_rights_add_up(gate):
    identity = who("storage.read:/a storage.read:/b storage.create:/c")
    assert allowed(gate, identity, READ, "/a/1")
    assert allowed(gate, identity, READ, "/b/1")
    assert not allowed(gate, identity, READ, "/c/1")
    assert not allowed(gate, identity, CREATE, "/a/1")


def test_a_trailing_slash_denies_a_file_of_that_name(gate):
    identity = who("storage.create:/foo/bar/")
    assert not allowed(gate, identity, CREATE, "/foo/bar")
    assert allowed(gate, identity, CREATE, "/foo/bar", is_dir=True)
    assert allowed(gate, identity, CREATE, "/foo/bar/x")
    assert allowed(gate, identity, STAT, "/foo/bar")


def makeable(gate, identity, path):
    try:
        gate.decide_directory(identity, path)
    except (Forbidden, Unauthenticated):
        return False
    return True


@pytest.mark.parametrize("right", ["create", "modify"])
def test_ancestors_may_be_looked_at_and_made_but_nothing_else(gate, right):
    identity = who(f"storage.{right}:/foo/bar/baz")
    for ancestor in ("/", "/foo", "/foo/bar"):
        assert allowed(gate, identity, STAT, ancestor)
        assert makeable(gate, identity, ancestor)
        for verb in (READ, CREATE, MODIFY, STAGE):
            for is_dir in (False, True):
                assert not allowed(gate, identity, verb, ancestor, is_dir)
    for other in ("/fo", "/foo/ba", "/x"):
        assert not allowed(gate, identity, STAT, other)
        assert not makeable(gate, identity, other)
    assert makeable(gate, identity, "/foo/bar/baz/x")
    assert makeable(gate, who(f"storage.{right}:/foo/"), "/foo")
    assert not makeable(gate, None, "/foo")


def test_readers_may_look_at_ancestors_and_make_none(gate):
    reader = who("storage.read:/foo/bar")
    assert allowed(gate, reader, STAT, "/foo")
    assert not makeable(gate, reader, "/foo")
    assert not allowed(gate, who("storage.poll:/foo/bar"), STAT, "/foo")


def test_where_only_narrow_scopes_count_a_wide_one_adds_nothing():
    gate = Gate({ISSUER: ["/"]}, wide=False)
    assert not allowed(gate, who("storage.read:/"), READ, "/r1/x")
    identity = who("storage.read:/ storage.read:/r2")
    assert allowed(gate, identity, READ, "/r2/x")
    assert not allowed(gate, identity, READ, "/r1/x")
    assert not allowed(gate, identity, STAT, "/r1")


def test_scopes_are_relative_to_the_issuers_area():
    gate = Gate({ISSUER: ["/cms", "/cmstest/"], "https://other.example.org": ["/other"]})
    identity = who("storage.read:/store storage.modify:/")
    assert allowed(gate, identity, READ, "/cms/store/x")
    assert allowed(gate, identity, READ, "/cmstest/store/x")
    assert allowed(gate, identity, MODIFY, "/cms")
    assert allowed(gate, identity, STAT, "/cms")
    for path in ("/store/x", "/cmsx/store", "/other/store/x", "/"):
        assert not allowed(gate, identity, READ, path)
        assert not allowed(gate, identity, MODIFY, path)
        assert not allowed(gate, identity, STAT, path)
        assert not makeable(gate, identity, path)


def test_an_issuer_without_an_area_here_has_no_rights():
    gate = Gate({ISSUER: ["/"]})
    with pytest.raises(
        Forbidden, match=r"outside the area of the issuer .*https://evil\.example\.org"
    ) as caught:
        gate.decide(who("storage.read:/", issuer="https://evil.example.org"), READ, "/x")
    assert "scope" not in caught.value.detail


def test_a_trailing_slash_of_the_issuer_does_not_matter():
    assert allowed(Gate({ISSUER + "/": ["/"]}), who("storage.read:/"), READ, "/x")
    assert allowed(Gate({ISSUER: ["/"]}), who("storage.read:/", issuer=ISSUER + "/"), READ, "/x")


def test_a_refusal_names_the_smallest_scope_relative_to_the_area():
    gate = Gate({ISSUER: ["/cms", "/cms/test"]})
    for verb, name in (
        (READ, "read"),
        (STAT, "read"),
        (CREATE, "create"),
        (MODIFY, "modify"),
        (STAGE, "stage"),
        (POLL, "poll"),
    ):
        with pytest.raises(Forbidden, match="alice") as caught:
            gate.decide(who(), verb, "/cms/test/a b")
        assert caught.value.detail["scope"] == f"storage.{name}:/a%20b"
    with pytest.raises(Forbidden) as caught:
        gate.decide(who(), READ, "/cms")
    assert caught.value.detail["scope"] == "storage.read:/"


def test_nobody_is_asked_for_a_token_without_being_told_it_is_invalid(gate):
    with pytest.raises(Unauthenticated) as caught:
        gate.decide(None, READ, "/x")
    assert not isinstance(caught.value, InvalidToken)


def test_public_means_reading_only_and_for_everybody():
    gate = Gate({ISSUER: ["/"]}, public=True)
    for identity in (None, who("storage.create:/elsewhere"), who(issuer="https://x.example.org")):
        assert allowed(gate, identity, READ, "/x")
        assert allowed(gate, identity, STAT, "/x")
        for verb in (CREATE, MODIFY, STAGE):
            assert not allowed(gate, identity, verb, "/x")


def test_groups_decide_only_without_any_capability_scope():
    gate = Gate(
        {ISSUER: ["/vo"]},
        groups={"/cms": [Capability(READ, "/store")], "/cms/prod": [Capability(MODIFY, "/store/prod/")]},
    )
    assert allowed(gate, who("openid", ["/cms"]), READ, "/vo/store/x")
    assert allowed(gate, who("", ["/cms/prod"]), MODIFY, "/vo/store/prod/x")
    assert not allowed(gate, who("", ["/cms/prod"]), READ, "/vo/store/x")
    assert not allowed(gate, who("", ["/cms/prod"]), MODIFY, "/vo/store/prod")
    assert not allowed(gate, who("", ["/cms"]), READ, "/store/x")
    for scope in ("compute.read", "host.auth", "storage.poll:/elsewhere", "storage.unheard:/x"):
        assert not allowed(gate, who(scope, ["/cms"]), READ, "/vo/store/x")


def test_a_policy_with_a_bad_path_is_refused_when_it_is_made():
    for prefixes, groups in (
        ({ISSUER: ["vo"]}, {}),
        ({ISSUER: ["/a/../b"]}, {}),
        ({}, {"/cms": [Capability(READ, "x")]}),
    ):
        with pytest.raises(ConfigError):
            Gate(prefixes, groups=groups)


def test_rights_are_never_taken_from_another_identity_that_lived_before(gate):
    for number in range(3 * MEMO):
        path = f"/d{number % 7}"
        assert allowed(gate, who(f"storage.read:{path}"), READ, path + "/x")
        assert not allowed(gate, who(f"storage.read:{path}"), READ, "/other")


def test_decisions_are_logged_without_secrets(gate, caplog):
    with caplog.at_level(logging.DEBUG, "doma.auth.gate"):
        gate.decide(who("storage.read:/a"), READ, "/a/x y")
        with pytest.raises(Forbidden):
            gate.decide(who("storage.read:/a"), MODIFY, "/a/x")
    granted, refused = (record.getMessage() for record in caplog.records)
    assert granted == f"alice (issuer {ISSUER}, token j1) may read /a/x%20y: granted below /a"
    assert refused == f"alice (issuer {ISSUER}, token j1) may not modify /a/x: no scope or group covers it"


parts = st.lists(st.sampled_from(["a", "b", "ab", "a.", "c"]), max_size=4)


@given(parts, parts, parts, st.sampled_from([READ, CREATE, MODIFY]), st.booleans())
def test_covering_is_comparing_lists_of_components(area, scope, path, verb, slash):
    prefix, granted, asked = ("/" + "/".join(p) for p in (area, scope, path))
    word = f"storage.{verb}:{granted}" + ("/" if slash and scope else "")
    full = area + scope
    covered = path[: len(full)] == full and not (slash and scope and path == full)
    assert allowed(Gate({ISSUER: [prefix]}), who(word), verb, asked) == covered


def test_where_every_path_has_its_own_token_a_refusal_does_not_advise_a_wider_scope():
    gate = Gate({ISSUER: ["/"]}, wide=False)
    with pytest.raises(Forbidden, match="/r/x: private; ask the service") as caught:
        gate.decide(who("storage.read:/"), Verb.READ, "/r/x")
    assert "scope" not in caught.value.detail
    gate.decide(who("storage.read:/r"), Verb.READ, "/r/x")
