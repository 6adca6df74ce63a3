"""From the ``scope`` claim to capabilities, and which scope covers which.

Source: WLCG Common JWT Profile 1.3 §"Scope-based authorisation", SciTokens 2.0 §"Authorisation claims",
RFC 6749 §3.3 (one string, blank-separated); rules T11-T19 of the token contract.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal
from urllib.parse import unquote

from doma.auth.model import Capability, Verb
from doma.core.errors import BadPath, BadRequest, UriTooLong
from doma.core.paths import covers, encode, normalise

Profile = Literal["wlcg", "scitokens", "any"]
"""Which scope words count: those of one profile, or (a token that names no profile) those of both."""

WLCG: Mapping[str, tuple[Verb, ...]] = {
    "storage.read": (Verb.READ,),
    "storage.create": (Verb.CREATE,),
    "storage.modify": (Verb.MODIFY,),
    "storage.stage": (Verb.STAGE,),
    "storage.poll": (Verb.POLL,),
}
SCITOKENS: Mapping[str, tuple[Verb, ...]] = {
    "read": (Verb.READ,),
    "write": (Verb.CREATE, Verb.MODIFY),
}

SATISFIED_BY: Mapping[Verb, frozenset[Verb]] = {
    Verb.READ: frozenset({Verb.READ}),
    Verb.LIST: frozenset({Verb.READ, Verb.LIST}),
    Verb.STAT: frozenset({Verb.READ, Verb.CREATE, Verb.MODIFY, Verb.STAGE, Verb.LIST, Verb.STAT}),
    Verb.CREATE: frozenset({Verb.CREATE, Verb.MODIFY}),
    Verb.MODIFY: frozenset({Verb.MODIFY}),
    Verb.STAGE: frozenset({Verb.STAGE}),
    Verb.POLL: frozenset({Verb.POLL, Verb.STAGE, Verb.READ, Verb.CREATE, Verb.MODIFY}),
}
"""The table of tokens.md §5: what one wants to the granted verbs of which one is enough. Macaroons alone give
list or stat and nothing else."""

_HELD: Mapping[Verb, frozenset[Verb]] = {
    Verb.READ: frozenset({Verb.READ}),
    Verb.CREATE: frozenset({Verb.CREATE, Verb.MODIFY}),
    Verb.MODIFY: frozenset({Verb.MODIFY}),
    Verb.STAGE: frozenset({Verb.STAGE}),
    Verb.POLL: frozenset({Verb.POLL, Verb.STAGE}),
    Verb.STAT: frozenset(),
    Verb.LIST: frozenset(),
}
# Narrower than SATISFIED_BY: who may read may ask for locality, but may not hand on storage.poll.

_GROUP = re.compile(r"(?:/[a-zA-Z0-9][a-zA-Z0-9_.-]*)+")
_WORD = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


def words(claim: object) -> tuple[str, ...]:
    """The words of a ``scope`` claim, in order; an absent claim has none.

    Args:
        claim: The JSON value: a string, or (tolerated) an array of strings.

    Raises:
        BadRequest: anything else.

    >>> words("storage.read:/a  fts"), words(["a", "b c"]), words(None)
    (('storage.read:/a', 'fts'), ('a', 'b', 'c'), ())
    """
    if claim is None:
        return ()
    if isinstance(claim, str):
        return tuple(word for word in claim.split(" ") if word)
    if isinstance(claim, list) and all(isinstance(item, str) for item in claim):
        return tuple(word for item in claim for word in item.split(" ") if word)
    raise BadRequest("scope: must be one string of blank-separated words")


def capabilities(scopes: Iterable[str], profile: Profile = "wlcg") -> tuple[Capability, ...]:
    """The storage rights that the words grant, each once; other words grant none here.

    Raises:
        BadRequest: a storage scope has no path, or a path that is relative, holds ``..`` or an encoded
            ``/``: one bad scope spoils the whole token (T11, T15).

    >>> capabilities(["storage.read:/a", "fts", "storage.create:/b/"])
    (Capability(verb=<Verb.READ: 'read'>, path='/a'), Capability(verb=<Verb.CREATE: 'create'>, path='/b/'))
    """
    table = {"wlcg": WLCG, "scitokens": SCITOKENS, "any": {**WLCG, **SCITOKENS}}[profile]
    found: dict[Capability, None] = {}
    for word in scopes:
        name, colon, path = word.partition(":")
        if name.startswith("storage.") and not colon:
            raise BadRequest(f"scope {shown(word)}: the path is missing; write {shown(name)}:/path")
        verbs = table.get(name)
        if verbs is not None and colon:
            clean = scope_path(path)
            found.update((Capability(verb, clean), None) for verb in verbs)
        elif colon and name.startswith("storage."):
            scope_path(path)  # an unknown right grants nothing, but its path must make sense (T11)
    return tuple(found)


def scope_path(raw: str) -> str:
    """The canonical path of a scope, percent-decoded once, the trailing slash of a directory kept.

    Raises:
        BadRequest: as :func:`doma.core.paths.normalise`.

    >>> scope_path("/a%20b//c/"), scope_path("/"), scope_path("/x/./y")
    ('/a b/c/', '/', '/x/y')
    """
    try:
        clean = normalise(raw)
    except (BadPath, UriTooLong) as e:
        raise BadRequest(f"scope path {e.message}") from e
    # RFC 3986 §5.2.4: "/a/." is "/a/". Reading it as a directory only narrows the right.
    directory = unquote(raw.rpartition("/")[2]) in {"", "."}
    return clean + "/" if directory and clean != "/" else clean


def check_words(scopes: Iterable[str]) -> None:
    """Refuse what may not stand in a ``scope`` that we write.

    Raises:
        BadRequest: a character that RFC 6749 forbids, or a malformed storage or group scope.
    """
    listed = tuple(scopes)
    for word in listed:
        if not _WORD.fullmatch(word):
            raise BadRequest(
                f"scope {shown(word)}: must be printable ASCII without quote and backslash; percent-encode it"
            )
        name, colon, group = word.partition(":")
        if name == "wlcg.groups" and colon and not is_group(group):
            raise BadRequest(f"scope {shown(word)}: not a group name; write wlcg.groups:/vo/group")
    capabilities(listed)


def decides_alone(scopes: Iterable[str]) -> bool:
    """Whether a token with these words is decided by capabilities alone, its groups ignored (T18).

    >>> decides_alone(["fts", "compute.read"]), decides_alone(["openid", "wlcg.groups"])
    (True, False)
    """
    return any(word.startswith(("storage.", "compute.")) or word == "host.auth" for word in scopes)


def from_scitokens(scopes: Iterable[str]) -> tuple[str, ...]:
    """The words of SciTokens as WLCG's: their ``write`` is WLCG's modify, which includes create.

    >>> from_scitokens(["read:/a", "write:/b", "fts"])
    ('storage.read:/a', 'storage.modify:/b', 'fts')
    """
    return tuple(_renamed(word, {"read": "storage.read", "write": "storage.modify"}) for word in scopes)


def to_scitokens(scopes: Iterable[str]) -> tuple[str, ...]:
    """WLCG's words as SciTokens'; what has no word there without being wider is left out.

    >>> to_scitokens(["storage.read:/a", "storage.create:/b", "storage.modify:/c", "compute.read"])
    ('read:/a', 'write:/c', 'compute.read')
    """
    named = (_renamed(word, {"storage.read": "read", "storage.modify": "write"}) for word in scopes)
    return tuple(word for word in named if not word.startswith(("storage.", "wlcg")))


def is_group(name: str) -> bool:
    """Whether a name follows the grammar of groups, ``/vo[/group…]`` (T19)."""
    return _GROUP.fullmatch(name) is not None


def granted(asked: Sequence[str], held: Sequence[str]) -> tuple[str, ...]:
    """The asked words that the held ones cover, in the order asked, each once.

    A storage scope is covered by component, by the same right or one that includes it (modify has all of
    create, stage all of poll); every other word only by itself.

    Raises:
        BadRequest: a malformed storage scope on either side.

    >>> granted(["storage.read:/a/b", "storage.read:/ab", "fts"], ["storage.read:/a", "fts"])
    ('storage.read:/a/b', 'fts')
    """
    own, plain = capabilities(held), frozenset(held)
    return tuple(dict.fromkeys(word for word in asked if _granted(word, own, plain)))


def written(verb: Verb, path: str) -> str:
    """The smallest scope that allows a verb on a path.

    >>> written(Verb.STAT, "/a b")
    'storage.read:/a%20b'
    """
    return f"storage.{'read' if verb in {Verb.STAT, Verb.LIST} else verb}:{encode(path)}"


def shown(text: str) -> str:
    """A foreign word as it may stand in a message: short, printable ASCII."""
    text = ascii(text)[1:-1]
    return text if len(text) <= 120 else text[:120] + "..."


def _renamed(word: str, names: Mapping[str, str]) -> str:
    name, colon, path = word.partition(":")
    return f"{names[name]}:{path}" if colon and name in names else word


def _granted(word: str, own: Sequence[Capability], plain: frozenset[str]) -> bool:
    rights = capabilities((word,))
    if not rights:
        return word in plain
    return all(any(_holds(mine, right) for mine in own) for right in rights)


def _holds(mine: Capability, asked: Capability) -> bool:
    if mine.verb not in _HELD[asked.verb] or not covers(mine.path, asked.path.rstrip("/") or "/"):
        return False
    # "/foo/" grants the directory: whoever asks for "/foo" would also get a file of that name.
    return not (mine.path.endswith("/") and mine.path != "/" and mine.path == asked.path + "/")
