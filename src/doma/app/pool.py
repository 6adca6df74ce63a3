"""Where column delivery works on files: processes of this machine, or Dask."""

import time

from doma.app.home import Home
from doma.app.opened import Opened
from doma.auth.issuer import Issuer
from doma.columns.model import Pool
from doma.core.config import Columns

INCOMING = "incoming"
"""The endpoint to which Dask workers upload results; it has no other use."""


def pool_of(section: Columns, opened: Opened, issuer: Issuer, home: Home) -> Pool:
    """The pool that is configured.

    Raises:
        MissingExtra: Dask is wanted and not installed.
    """
    if section.pool == "local":
        from doma.columns.worker import WorkerPool

        return WorkerPool(section.workers, section.worker_memory, section.lease, section.stall)
    from doma.columns.pool_dask import DaskPool, Handover

    def sign(name: str, seconds: float) -> str:
        """A token that writes this one name of the endpoint."""
        return issuer.issue(
            subject="columns", scopes=f"storage.modify:/{name} storage.read:/{name}", audience=(opened.base,),
            lifetime=min(seconds, 7 * 24 * 3600.0),
        )  # fmt: skip

    if section.dask.shared:
        return DaskPool(section, None)
    folder = home / INCOMING
    folder.mkdir(mode=0o700, exist_ok=True)
    for left in folder.iterdir():  # uploads that came when nobody wanted them any more
        if left.is_file() and left.stat().st_mtime < time.time() - 24 * 3600:
            left.unlink(missing_ok=True)
    return DaskPool(section, Handover(f"{opened.base}/{INCOMING}", folder, sign))
