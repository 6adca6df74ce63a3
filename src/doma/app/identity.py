"""The embedded issuer of a home: its address, its keys, the tokens that the system makes for itself."""

from doma.app.home import Home
from doma.auth.clients import Clients
from doma.auth.issuer import Issuer
from doma.auth.keys import KeySet, Secrets
from doma.auth.ledger import Ledger, Tables
from doma.auth.macaroon import Macaroons
from doma.core.config import Auth
from doma.core.errors import ConfigError, ServiceUnavailable

ADMIN_SCOPES = "storage.read:/ storage.modify:/ storage.stage:/ doma.admin"


def make_issuer(home: Home, base: str, auth: Auth, tables: Tables) -> Issuer:
    """The issuer at ``<base>/<vo>``; its address is kept, so that ``doma token`` can sign without the server.

    Args:
        home: Where keys and clients are.
        base: ``https://host:port`` of the running system, also the default audience.
        auth: Its section of the configuration.
        tables: Where it remembers refresh tokens, codes and revocations.
    """
    home.write("issuer", f"{base}/{auth.vo}\n{base}\n{auth.vo}\n{auth.lifetime}\n")
    return Issuer(
        f"{base}/{auth.vo}",
        auth.vo,
        KeySet.load_or_make(home / "keys"),
        clients=clients_of(home),
        lifetime=auth.lifetime,
        default_audience=base,
        ledger=Ledger(
            tables, home.secret("keys/refresh.key"), grace=auth.rotation_grace, longer=auth.macaroon_lifetime
        ),
        users=users_of(home),
        refresh_lifetime=auth.refresh_lifetime,
    )


def macaroons_of(home: Home, name: str, longest: float) -> Macaroons | None:
    """What makes and judges a home's macaroons, for at most ``longest`` seconds; None: nobody does."""
    return Macaroons(name, Secrets(home / "keys" / "macaroon.key"), longest) if longest > 0 else None


def clients_of(home: Home) -> Clients:
    """The clients that are registered in a home. Raises ConfigError: the file is torn or open to others."""
    return Clients(home / "keys" / "clients.json")


def users_of(home: Home) -> Clients:
    """The users that can log in on the issuer's pages; raises as :func:`clients_of`."""
    return Clients(home / "keys" / "users.json")


def issuer_of(home: Home) -> Issuer:
    """The issuer of a home as it was last started.

    Raises:
        ServiceUnavailable: nothing ever ran in this home. ConfigError: it is not ours.
    """
    try:
        url, base, vo, lifetime = (home / "issuer").read_text().splitlines()
    except PermissionError as e:
        raise ConfigError(f"{home.path}: cannot be looked into ({e.strerror}); ask as its owner") from e
    except (OSError, ValueError) as e:
        raise ServiceUnavailable(
            f"{home.path}: has no issuer yet; start it once with 'doma up --home {home.path}'"
        ) from e
    keys, clients = KeySet.load_or_make(home / "keys"), clients_of(home)
    return Issuer(url, vo, keys, clients=clients, lifetime=float(lifetime), default_audience=base)
