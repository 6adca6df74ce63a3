"""Scope words, their paths, and which one covers which (rules T11-T19)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.auth.model import Capability, Verb
from doma.auth.scopes import capabilities, check_words, decides_alone, granted, scope_path, words, written
from doma.core.errors import BadRequest
from doma.core.paths import normalise

ATTACKS = [
    "storage.read",
    "storage.read:",
    "storage.read:foo",
    "storage.read:./foo",
    "storage.read:/foo/../bar",
    "storage.read:/..",
    "storage.read:/%2e%2e/bar",
    "storage.read:/foo/%2E./bar",
    "storage.read:/foo%2Fbar",
    "storage.read:/foo%2f..",
    "storage.read:/foo%00",
    "storage.read:/foo%0a",
    "storage.read:/foo%ff",
    "storage.read:/" + "a" * 5000,
    "storage.create:/" + "a" * 256,
    "storage.unheard",
    "storage.unheard:../x",
]


@pytest.mark.parametrize("scope", ATTACKS)
def test_one_malformed_storage_scope_spoils_the_whole_token(scope):
    with pytest.raises(BadRequest):
        capabilities(["storage.read:/good", scope])


@pytest.mark.parametrize("scope", ATTACKS)
def test_a_malformed_storage_scope_is_never_written(scope):
    with pytest.raises(BadRequest):
        check_words([scope])


@pytest.mark.parametrize(
    "scope", ["storage.read:/a b", 'storage.read:/"', "storage.read:/\\", "fts\n", "ä", "wlcg.groups:cms"]
)
def test_words_that_rfc_6749_forbids_are_never_written(scope):
    with pytest.raises(BadRequest):
        check_words([scope])


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/a/", "/a/"),
        ("/a//", "/a/"),
        ("/a/.", "/a/"),
        ("/a/%2e", "/a/"),
        ("/a%20b", "/a b"),
        ("/a/./b", "/a/b"),
        ("/%2520", "/%20"),
    ],
)
def test_a_scope_path_is_decoded_once_and_keeps_its_directory_slash(raw, path):
    assert scope_path(raw) == path


def test_case_matters_and_unknown_words_grant_nothing():
    assert capabilities(["Storage.Read:/a", "storage.write:/a", "fts", "compute.read", "read:/a"]) == ()


def test_scitokens_words_count_in_their_profile_only():
    both = (Capability(Verb.CREATE, "/a"), Capability(Verb.MODIFY, "/a"))
    assert capabilities(["read:/x", "write:/a"], "scitokens") == (Capability(Verb.READ, "/x"), *both)
    assert capabilities(["write:/a", "storage.read:/x"], "any") == (*both, Capability(Verb.READ, "/x"))
    assert capabilities(["storage.read:/x"], "scitokens") == ()
    assert capabilities(["read", "write"], "scitokens") == ()


def test_a_scope_claim_is_a_string_and_an_array_is_tolerated():
    assert words(" a  b ") == ("a", "b")
    assert words([]) == ()
    for claim in (1, {"a": 1}, ["a", 1], [["a"]], True):
        with pytest.raises(BadRequest):
            words(claim)


@pytest.mark.parametrize(
    ("asked", "held", "got"),
    [
        ("storage.read:/a/b", "storage.read:/a", True),
        ("storage.read:/a", "storage.read:/a", True),
        ("storage.read:/ab", "storage.read:/a", False),
        ("storage.read:/", "storage.read:/a", False),
        ("storage.read:/a", "storage.read:/", True),
        ("storage.create:/a", "storage.modify:/a", True),
        ("storage.modify:/a", "storage.create:/a", False),
        ("storage.poll:/a", "storage.stage:/a", True),
        ("storage.poll:/a", "storage.read:/a", False),
        ("storage.read:/a", "storage.modify:/a", False),
        ("storage.read:/a", "storage.stage:/a", False),
        ("storage.read:/a/", "storage.read:/a", True),
        ("storage.read:/a", "storage.read:/a/", False),
        ("storage.read:/a/x", "storage.read:/a/", True),
        ("storage.read:/a/", "storage.read:/a/", True),
        ("storage.read:/a%2Db", "storage.read:/a-b", True),
        ("fts", "fts", True),
        ("fts", "storage.read:/", False),
        ("compute.read", "compute", False),
    ],
)
def test_a_scope_is_granted_only_when_a_held_one_covers_it(asked, held, got):
    assert granted([asked], [held]) == ((asked,) if got else ())


def test_only_capability_words_switch_groups_off():
    assert decides_alone(["storage.unheard:/x"])
    assert decides_alone(["host.auth"])
    assert not decides_alone(["openid", "fts", "storagex", "host.authx"])


names = st.text(
    st.characters(codec="utf-8", exclude_characters="/", exclude_categories=["Cc", "Cs"]),
    min_size=1,
    max_size=8,
)
paths = st.lists(names.filter(lambda n: n not in {".", ".."} and not n.startswith(".doma")), max_size=4).map(
    lambda p: "/" + "/".join(p)
)


@given(paths)
def test_the_scope_that_a_refusal_names_grants_just_that_path(path):
    path = normalise(written(Verb.READ, path).partition(":")[2])
    scope = written(Verb.CREATE, path)
    assert capabilities([scope]) == (Capability(Verb.CREATE, path),)
    check_words([scope])


@given(paths, paths)
def test_what_is_granted_never_widens(asked, held):
    got = granted([written(Verb.READ, asked)], [written(Verb.READ, held)])
    a, h = (p.strip("/").split("/") if p != "/" else [] for p in (asked, held))
    assert bool(got) == (a[: len(h)] == h)


@given(st.text(max_size=60))
def test_any_text_is_either_understood_or_refused_with_our_error(text):
    try:
        found = capabilities(words(text), "any")
    except BadRequest:
        return
    for right in found:
        assert right.path.startswith("/")
        assert ".." not in right.path.split("/")
