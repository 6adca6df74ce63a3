"""A COPY between two of our own doors: from store to store, without the network and its guard (W71)."""

from doma.core.checksum import same
from doma.core.errors import DomaError, PreconditionFailed
from doma.doors.tpc_order import Order
from doma.doors.tpc_progress import Progress, blame
from doma.doors.tpc_pull import Target
from doma.store.protocol import PIECE, Stat, Store


async def local(order: Order, source: Store, path: str, target: Target, progress: Progress) -> Stat:
    """Copy one version of a file; published whole, verified, or not at all."""
    try:
        reader = await source.open(path)
    except DomaError as e:
        raise blame(e, "source") from e
    try:
        stat = reader.stat
        progress.size, progress.doing = stat.size, "transferring"
        for name, value in order.digests.items():
            if name in stat.checksums and not same(name, stat.checksums[name], value):
                wrong = f"source: its {name} is {stat.checksums[name]}, the request says {value}"
                raise blame(PreconditionFailed(wrong), "source")
        upload = await target.store.create(
            target.path,
            size=stat.size,
            checksums={**order.digests, **stat.checksums},
            if_version=target.if_version,
            if_absent=target.if_absent,
        )
        try:
            for start in range(0, stat.size, PIECE):
                stop = min(start + PIECE, stat.size)
                await upload.write(await reader.read(start, stop))
                progress.bytes = stop
            return await upload.commit()
        except BaseException:  # a cancellation, too: undone, and raised on
            await upload.abort()
            raise
    finally:
        await reader.close()
