"""The embedded issuer of a home: its address, its keys, the tokens that the system makes for itself."""

import time
from pathlib import Path

from doma.app.home import Home
from doma.auth.clients import Clients
from doma.auth.issuer import Issuer
from doma.auth.keys import KeySet
from doma.core.config import Auth
from doma.core.errors import ConfigError, ServiceUnavailable

ADMIN_SCOPES = "storage.read:/ storage.modify:/ doma.admin"


def make_issuer(home: Home, base: str, auth: Auth) -> Issuer:
    """The issuer at ``<base>/<vo>``; its address is kept, so that ``doma token`` can sign without the server.

    Args:
        home: Where keys and clients are.
        base: ``https://host:port`` of the running system, also the default audience.
        auth: Its section of the configuration.
    """
    home.write("issuer", f"{base}/{auth.vo}\n{base}\n{auth.vo}\n{auth.lifetime}\n")
    return _issuer(home.path, f"{base}/{auth.vo}", base, auth.vo, auth.lifetime)


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
    return _issuer(home.path, url, base, vo, float(lifetime))


def _issuer(home: Path, url: str, base: str, vo: str, lifetime: float) -> Issuer:
    keys = KeySet.load_or_make(home / "keys")
    clients = Clients(home / "keys" / "clients.json")
    return Issuer(url, vo, keys, clients=clients, clock=time.time, lifetime=lifetime, default_audience=base)
