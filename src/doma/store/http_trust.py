"""Whom an HTTP store connects to, and what it tells them."""

import ipaddress
import socket
import ssl
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from doma.core.errors import ConfigError, Forbidden
from doma.core.url import origin_of, redacted

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_KINDS = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"),
    "link-local": ("169.254.0.0/16", "fe80::/10"),
}
_METADATA = tuple(
    # Azure's wire server is a public address; the others are of networks that are refused anyway.
    ipaddress.ip_address(text)
    for text in ("168.63.129.16", "169.254.169.254", "100.100.100.200", "fd00:ec2::254")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressGuard:
    """Judges addresses before they are connected: a redirect must not lead into a private network.

    Args:
        host: Of the configured server.
        allow_private: Whether private and loopback addresses are fine. None: for the server itself yes, for
            others (redirects) private ones only if its own is not public, loopback only if its own is that,
            too; link-local ones and those where clouds keep their metadata never.

    Source: rule W70 of the storage contract.
    """

    def __init__(self, host: str, allow_private: bool | None) -> None:
        self._host = host
        self._allow_private = allow_private
        self._own: Ip | None = None

    def __call__(self, host: str, address: str) -> bool:
        ip = _innermost(address)
        if self._allow_private is not None:
            return ip.is_global or self._allow_private
        if host == self._host:
            self._own = ip
            return True
        if ip in _METADATA or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
            return False
        if ip.is_loopback:
            return self._own is not None and self._own.is_loopback
        return ip.is_global or (self._own is not None and not self._own.is_global)


class RemoteGuard:
    """Judges servers that a client named, so that nobody reaches through us what he could not reach himself.

    Public addresses are fine but for our own and those of cloud metadata; others need a word of ``allow``.

    Args:
        allow: ``loopback``, ``private``, ``link-local``, networks (``10.0.0.0/8``), host names or globs.
        deny: The same words; asked before ``allow``.
        plain: Whether ``http`` is spoken, and so port 80 is fine.
        key: The configuration key that messages name.

    Raises:
        ConfigError: a word is none of these.

    Source: rule W70 of the storage contract.
    """

    def __init__(
        self,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        *,
        plain: bool = False,
        key: str = "tpc.allow",
    ) -> None:
        self._allow, self._deny = _Words(allow, key), _Words(deny, key.replace("allow", "deny"))
        self._plain = plain
        self._key = key

    def check(self, url: str) -> None:
        """Judge what can be judged before the name is resolved: scheme and port.

        Raises:
            Forbidden: it is refused. BadRequest: it is no URL.
        """
        origin, shown = origin_of(url), redacted(url).partition("?")[0]
        if origin.scheme != "https" and not (origin.scheme == "http" and self._plain):
            raise Forbidden(f"{shown}: only https is spoken here, not {origin.scheme}", key=self._key)
        if origin.port < 1024 and origin.port != (443 if origin.scheme == "https" else 80):
            raise Forbidden(
                f"{shown}: port {origin.port} is refused; ports of servers are 443 and 1024-65535",
                key=self._key,
            )

    def __call__(self, host: str, address: str) -> bool:
        """Whether this address, found for this name, may be connected."""
        ip = _innermost(address)
        if self._deny.name(host, ip):
            return False
        if self._allow.name(host, ip):
            return True
        inner = ip.is_multicast or ip.is_reserved or ip.is_unspecified or getattr(ip, "is_site_local", False)
        public = ip.is_global and not inner
        return public and ip not in _METADATA and not _is_own(ip)


class _Words:
    """Networks and host names out of the configuration."""

    def __init__(self, words: Iterable[str], key: str) -> None:
        self._networks: list[Network] = []
        self._hosts: list[str] = []
        for word in words:
            text = word.strip().lower()
            if text in _KINDS:
                self._networks += map(ipaddress.ip_network, _KINDS[text])
                continue
            try:
                self._networks.append(ipaddress.ip_network(text.strip("[]"), strict=False))
            except ValueError as e:
                if not text or "/" in text or ":" in text:
                    raise ConfigError(
                        f"{key}: {word!r} is no network or host name; write {', '.join(_KINDS)}, 10.0.0.0/8"
                        " or se.example.org"
                    ) from e
                self._hosts.append(text)

    def name(self, host: str, ip: Ip) -> bool:
        """Whether a word names this host or this address."""
        return any(ip in network for network in self._networks) or any(
            fnmatchcase(host.lower(), glob) for glob in self._hosts
        )


def _innermost(address: str) -> Ip:
    """The address that packets will reach: IPv6 forms that carry an IPv4 one are opened."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        return ip.ipv4_mapped or ip.sixtofour or ip
    return ip


def _is_own(ip: Ip) -> bool:
    """Whether the address is one of this machine: only those can be bound."""
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
    except OSError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


Authorities = str | Path | Sequence[str | Path] | None
"""PEM files, or folders of hashed ones (``/etc/grid-security/certificates``)."""


def context_of(*authorities: Authorities) -> ssl.SSLContext:
    """A verifying context with the system's authorities and one's own.

    Args:
        *authorities: Which to trust besides.

    Raises:
        ConfigError: one of them cannot be used.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    several = [[one] if isinstance(one, str | Path) else list(one or ()) for one in authorities]
    for place in [place for places in several for place in places if place]:
        try:
            if Path(place).is_dir():
                context.load_verify_locations(capath=place)
            else:
                context.load_verify_locations(cafile=place)
        except (OSError, ssl.SSLError) as e:
            raise ConfigError(f"{place}: cannot be used as a CA file ({e}); give a PEM file") from e
    return context
