"""The policy of an endpoint as the configuration writes it: which issuers count where, what groups may do.

Source: rules T16 and T19 of the token contract.
"""

from collections.abc import Mapping, Sequence

from doma.auth.gate import Gate
from doma.auth.model import Capability
from doma.auth.scopes import capabilities, is_group
from doma.core.config import Endpoint, Issuer
from doma.core.errors import BadRequest, ConfigError


def gate_of(name: str, section: Endpoint, issuers: Sequence[Issuer]) -> Gate:
    """The gate of an endpoint.

    Args:
        name: The endpoint's.
        section: Its part of the configuration.
        issuers: Everybody who is trusted at all.

    Raises:
        ConfigError: an issuer is unknown, a group or its scope is malformed, or a group could be claimed by
            an issuer that serves no VO of its own.
    """
    prefixes = {issuer.issuer: issuer.prefixes for issuer in issuers}
    if section.issuers:
        prefixes = _chosen(name, section.issuers, issuers)
    nameless = [issuer.issuer for issuer in issuers if not issuer.vo and issuer.issuer in prefixes]
    if section.groups and nameless:
        raise ConfigError(
            f"endpoints.{name}.groups: {nameless[0]} could claim any group; give it its vo in auth.issuers"
        )
    groups = {group: _rights(name, group, scopes) for group, scopes in section.groups.items()}
    return Gate(prefixes, public=section.public, groups=groups, name=name)


def _chosen(
    name: str, wanted: Mapping[str, tuple[str, ...]], issuers: Sequence[Issuer]
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for who, areas in wanted.items():
        same = [i for i in issuers if i.issuer.removesuffix("/") == who.removesuffix("/") or i.vo == who]
        if len(same) != 1:
            known = ", ".join(issuer.issuer for issuer in issuers)
            raise ConfigError(
                f"endpoints.{name}.issuers: {who!r} names {len(same)} issuers; name one of {known}"
            )
        found[same[0].issuer] = areas or same[0].prefixes
    return found


def _rights(name: str, group: str, scopes: Sequence[str]) -> tuple[Capability, ...]:
    if not is_group(group):
        raise ConfigError(f"endpoints.{name}.groups: {group!r} must be of the form /vo/group")
    try:
        rights = [capabilities((scope,)) for scope in scopes]
    except BadRequest as e:
        raise ConfigError(f"endpoints.{name}.groups: {group}: {e.message}") from e
    for scope, given in zip(scopes, rights, strict=True):
        if not given:
            raise ConfigError(
                f"endpoints.{name}.groups: {group}: {scope!r} grants nothing; write storage.read:/path"
            )
    return tuple(right for given in rights for right in given)
