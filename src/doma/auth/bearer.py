"""Where a token is found: in a request, and on the machine of a client.

Source: RFC 6750 §2, XRootD's ``authz`` CGI, WLCG Bearer Token Discovery 1.0; §7 of the token contract.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote_plus

from doma.auth.files import read_private
from doma.core.errors import BadCredential, ConfigError, Unauthenticated

MAX_FILE = 64 << 10
"""Bytes of the largest token file."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


def bearer_of(authorization: str | None, query: str = "", *, access_token: bool = False) -> str | None:
    """The bearer token of a request, None if there is none.

    Credentials of another scheme are not ours to judge: they count as none.

    Args:
        authorization: The ``Authorization`` header.
        query: The query as on the wire, without ``?``; ``authz=`` holds a token with or without ``Bearer``.
        access_token: Whether ``access_token=`` is looked at as well (RFC 6750 §2.3).

    Raises:
        BadCredential: a malformed credential, or two that differ.

    >>> bearer_of("bearer abc"), bearer_of(None, "a=1&authz=Bearer%20abc"), bearer_of("Basic eA==")
    ('abc', 'abc', None)
    """
    found: set[str] = set()
    if authorization is not None:
        scheme, _, value = authorization.strip().partition(" ")
        if scheme.lower() == "bearer":
            found.add(_checked(value.strip(" "), "Authorization"))
    if "authz=" in query or (access_token and "access_token=" in query):
        for pair in query.split("&"):
            name, _, raw = pair.partition("=")
            if not raw or not (name == "authz" or (access_token and name == "access_token")):
                continue
            value = unquote_plus(raw).strip(" ")
            scheme, blank, rest = value.partition(" ")
            if blank and scheme.lower() == "bearer":
                value = rest.strip(" ")
            found.add(_checked(value, f"query parameter {name}"))
    if len(found) > 1:
        raise BadCredential("request: carries two different tokens; send one")
    return found.pop() if found else None


def discover(environ: Mapping[str, str], uid: int, *, tmp: Path = Path("/tmp")) -> str | None:  # noqa: S108 - the standard's place
    """The token that a client finds on its machine, None if there is none anywhere.

    Looks at ``$BEARER_TOKEN``, the file ``$BEARER_TOKEN_FILE``, ``$XDG_RUNTIME_DIR/bt_u<uid>`` and
    ``/tmp/bt_u<uid>``, in this order. What is there but cannot be used is an error: going on would send
    another token than the user believes.

    Args:
        environ: The environment.
        uid: The effective user id, who must own the files.
        tmp: The last place.

    Raises:
        Unauthenticated: a variable that is set is unusable, or a file has another owner, can be read by
            others, or holds no token; the message has the remedy.
    """
    if "BEARER_TOKEN" in environ:
        return _usable(environ["BEARER_TOKEN"], "$BEARER_TOKEN")
    if "BEARER_TOKEN_FILE" in environ:
        path = Path(environ["BEARER_TOKEN_FILE"])
        token = _read(path, uid, follow=True)
        if token is None:
            raise Unauthenticated(
                f"$BEARER_TOKEN_FILE: there is no file {path}; correct or unset the variable"
            )
        return token
    runtime = environ.get("XDG_RUNTIME_DIR")
    for folder in (Path(runtime), tmp) if runtime else (tmp,):
        # Not through a link: in a directory that others write to, it could make us send any file of ours.
        token = _read(folder / f"bt_u{uid}", uid, follow=False)
        if token is not None:
            return token
    return None


def _checked(value: str, where: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise BadCredential(f"{where}: is malformed; expected 'Bearer' and one token")
    return value


def _usable(text: str, where: str) -> str:
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise Unauthenticated(f"{where}: holds no token; set it to one token, or remove it")
    return token


def _read(path: Path, uid: int, *, follow: bool) -> str | None:
    try:
        data = read_private(path, MAX_FILE, uid=uid, follow=follow)
    except ConfigError as e:
        raise Unauthenticated(f"token file {e.message}") from e
    return None if data is None else _usable(data.decode("latin-1"), f"token file {path}")
