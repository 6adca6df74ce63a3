"""One look at a trusted issuer over the network: metadata, then keys, within tight bounds.

Source: OpenID Connect Discovery 1.0 §4, RFC 8414 §3; §2 of the token contract.
"""

import asyncio
import json
import ssl
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from doma.auth.scopes import shown
from doma.core.errors import ConfigError, IssuerUnavailable

CONNECT, TOTAL = 5.0, 10.0
"""Seconds to connect, and for all requests together."""
MAX_BODY = 1 << 20
REDIRECTS = 3

_MOVED = frozenset({301, 302, 303, 307, 308})


def context(ca_file: str) -> ssl.SSLContext:
    """TLS that checks host names, against a CA file or (empty) the system's CAs.

    Raises:
        ConfigError: the file cannot be read or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"{ca_file}: cannot be used as CA file: {e}; give a PEM bundle") from e


def addresses(issuer: str) -> tuple[str, ...]:
    """Where the metadata of an issuer may lie, in the order to try.

    >>> addresses("https://h/vo/")[0]
    'https://h/vo/.well-known/openid-configuration'
    >>> addresses("https://h/vo")[1]
    'https://h/.well-known/oauth-authorization-server/vo'
    """
    bare = issuer.removesuffix("/")
    url = urlsplit(bare)
    top = f"{url.scheme}://{url.netloc}/.well-known"
    return tuple(
        dict.fromkeys(
            (
                f"{bare}/.well-known/openid-configuration",
                f"{top}/oauth-authorization-server{url.path}",
                f"{top}/openid-configuration{url.path}",
            )
        )
    )


async def fetch_jwks(issuer: str, tls: ssl.SSLContext) -> dict[str, Any]:
    """The JWK set that the issuer's metadata names, as JSON.

    Args:
        issuer: URL of a trusted issuer; never one that a token brought.
        tls: See :func:`context`.

    Raises:
        IssuerUnavailable: it cannot be reached, or answers nonsense; the message says what.
    """
    try:
        # No proxy, netrc or CA bundle from the environment: the configuration alone decides.
        async with (
            asyncio.timeout(TOTAL),
            httpx.AsyncClient(
                verify=tls,
                trust_env=False,
                timeout=httpx.Timeout(TOTAL, connect=CONNECT),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            ) as client,
        ):
            metadata = await _metadata(client, issuer)
            found = await _get(client, str(metadata.get("jwks_uri")))
    except TimeoutError as e:
        raise IssuerUnavailable(f"no complete answer within {TOTAL:g} s") from e
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as e:  # ValueError: not even a URL
        raise IssuerUnavailable(shown(str(e) or type(e).__name__)) from e
    if found is None:
        raise IssuerUnavailable("its jwks_uri answers 404")
    return found


async def _metadata(client: httpx.AsyncClient, issuer: str) -> dict[str, Any]:
    for address in addresses(issuer):
        found = await _get(client, address)
        if found is None:
            continue
        named = found.get("issuer")
        if not isinstance(named, str) or named.removesuffix("/") != issuer.removesuffix("/"):
            raise IssuerUnavailable(f"{address} speaks for another issuer, {shown(str(named)[:200])}")
        return found
    raise IssuerUnavailable("it has no metadata at its .well-known addresses")


async def _get(client: httpx.AsyncClient, address: str) -> dict[str, Any] | None:
    """A JSON object, or None for 404; follows redirects to https of the same host."""
    host = urlsplit(address).hostname
    for _ in range(REDIRECTS + 1):
        url = urlsplit(address)
        if url.scheme != "https" or url.hostname != host:
            raise IssuerUnavailable(f"{shown(address)}: only https of the same host is followed")
        async with client.stream("GET", address) as answer:
            if answer.status_code == 404:
                return None
            if answer.status_code in _MOVED:
                address = urljoin(address, answer.headers.get("location", ""))
                continue
            if answer.status_code != 200:
                raise IssuerUnavailable(f"{shown(address)} answers {answer.status_code}")
            return _object(await _body(answer), address)
    raise IssuerUnavailable(f"{shown(address)}: more than {REDIRECTS} redirects")


async def _body(answer: httpx.Response) -> bytes:
    data = bytearray()
    # Raw: a compressed answer, which we did not ask for, could unfold to any size.
    async for piece in answer.aiter_raw():
        data += piece
        if len(data) > MAX_BODY:
            raise IssuerUnavailable(f"{shown(str(answer.url))}: answers more than {MAX_BODY} bytes")
    return bytes(data)


def _object(data: bytes, address: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise IssuerUnavailable(f"{shown(address)}: does not answer JSON") from e
    if not isinstance(found, dict):
        raise IssuerUnavailable(f"{shown(address)}: does not answer a JSON object")
    return found
