"""Whom an HTTP store connects to, and what it tells them."""

import ipaddress
import ssl
from pathlib import Path

from doma.core.errors import ConfigError


class AddressGuard:
    """Judges addresses before they are connected: a redirect must not lead into a private network.

    Args:
        host: Of the configured server.
        allow_private: Whether private and loopback addresses are fine. None: for the server itself yes, for
            others (redirects) only if the server's own is one; link-local ones, where clouds keep their
            metadata, never.

    Source: rule W70 of the storage contract.
    """

    def __init__(self, host: str, allow_private: bool | None) -> None:
        self._host = host
        self._allow_private = allow_private
        self._is_private = False

    def __call__(self, host: str, address: str) -> bool:
        ip = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if self._allow_private is not None:
            return ip.is_global or self._allow_private
        if host == self._host:
            self._is_private = not ip.is_global
            return True
        return ip.is_global or (self._is_private and not (ip.is_link_local or ip.is_multicast))


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def context_of(ca_file: str | Path | None) -> ssl.SSLContext:
    """A verifying context with the system's authorities and one's own. Raises ConfigError."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as e:
            raise ConfigError(f"{ca_file}: cannot be used as a CA file ({e}); give a PEM file") from e
    return context
