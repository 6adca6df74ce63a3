"""Where a system listens: a port that is asked for, or one that a home takes once and keeps."""

import errno
import logging
import random
import socket

from doma.app.home import Home
from doma.core.config import Listen
from doma.core.errors import ConfigError, PortInUse

log = logging.getLogger(__name__)

PORTS = range(18_000, 32_000)
"""Where a new home looks for its port: below the ephemeral ports, so that it can keep it."""


def placed(listen: Listen, home: Home) -> Listen:
    """The listen section with a real port: the asked one, the home's own, or a free one.

    Raises:
        ConfigError: the address is none, or none of this machine. PortInUse: the asked port is taken.
    """
    host, colon, port = listen.address.rpartition(":")
    if not colon or len(port) > 5 or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(
            f"listen.address {listen.address!r}: is not HOST:PORT; write for example 127.0.0.1:8443,"
            " or port 0 for a free one"
        )
    if int(port):
        if not _free(host.strip("[]"), int(port)):
            raise PortInUse(
                f"{listen.address}: another program listens there; stop it or choose another port with"
                " --listen",
                address=listen.address,
            )
        return listen
    kept = home.port()
    candidates = [kept] if kept else []
    candidates += random.sample(PORTS, 32)
    for number in candidates:
        if _free(host.strip("[]"), number):
            if kept and number != kept:
                log.warning("port %d of this home is taken; using %d", kept, number)
            return listen.model_copy(update={"address": f"{host}:{number}"})
    raise PortInUse(
        f"{host}: no free port found between {PORTS.start} and {PORTS.stop}; give one with --listen"
    )


def _free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as e:
            if isinstance(e, OSError) and e.errno == errno.EADDRINUSE:
                return False
            why = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
            raise ConfigError(
                f"listen.address: {host}:{port} cannot be used ({why}); choose another with --listen"
            ) from e
    return True
