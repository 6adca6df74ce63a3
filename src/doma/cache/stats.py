"""What the cache counted: every delivered byte once, as hit, prefetched, miss or bypass.

Source: cache contract §9 (classes of bytes), §10.
"""

from dataclasses import dataclass, field, fields

from doma.cache.usage import Usage


@dataclass(slots=True)
class Counters:
    """Running sums since the start of the process."""

    hit: int = 0
    """Bytes delivered from disk or memory that somebody had asked for before."""
    prefetched: int = 0
    """Bytes delivered that had been fetched ahead, the first time they are read; no hits."""
    miss: int = 0
    """Bytes delivered that were fetched because they were asked for."""
    prefetch: int = 0
    """Bytes fetched unasked."""
    bypass: int = 0
    """Bytes streamed through and not kept (no room, no memory, ``no-store``)."""
    origin: int = 0
    """Bytes taken from origins, for whatever reason."""
    repair: int = 0
    """Bytes whose stored checksum did not fit; they are fetched again."""
    stored: int = 0
    """Bytes written to disk."""
    purged: int = 0
    """Disk bytes freed by purge and evict."""
    opens: int = 0
    """Opens, warm or cold."""
    validations: int = 0
    """Questions to origins whether an object is still current."""
    renewed: int = 0
    """Validations that found nothing new."""
    replaced: int = 0
    """Versions replaced by a newer one."""
    stale: int = 0
    """Opens served stale while the origin was away."""
    discarded: int = 0
    """Versions thrown away because the origin contradicted itself (size, checksum)."""
    retries: int = 0
    """Fetches that were tried again."""
    origin_errors: int = 0
    """Fetches and validations that failed for good."""
    disk_errors: int = 0
    """Reads and writes that the cache disk refused."""
    disk_seconds: float = 0.0
    """Seconds that reads and writes have waited for the cache disk."""
    disk_late: int = 0
    """Reads that went to the origin because the disk took longer than that does."""
    evicted: dict[str, int] = field(default_factory=dict)
    """``purged`` by reason: command, first, expired, quota, age, room."""

    def evict(self, reason: str, amount: int) -> None:
        """Count disk bytes freed by a purge or command, by the reason that the purge gives."""
        kind = _KINDS.get(reason.partition(" ")[0], "room")
        self.purged += amount
        self.evicted[kind] = self.evicted.get(kind, 0) + amount


_KINDS = {"command": "command", "evicted,": "first", "expired": "expired", "over": "quota", "not": "age"}
"""First word of a reason to its short name in metrics."""


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot for people, JSON and Prometheus."""

    bytes: dict[str, int]
    """hit, prefetched, miss, prefetch, bypass, origin, repair, stored, purged."""
    counts: dict[str, int | float]
    """opens, validations, renewed, replaced, stale, discarded, retries, origin_errors, disk_errors,
    disk_seconds, disk_late."""
    hit_ratio: float | None
    """hit / (hit + prefetched + miss + bypass); None before the first byte."""
    used: int
    """Disk bytes of the whole folder in allocated blocks, as ``du`` counts them."""
    beside: int
    """Those of ``used`` that are no object's: the index and the folders themselves."""
    size: int
    """Disk bytes the cache may use."""
    fetching: int
    """Bytes of running fetches in memory."""
    memory: int
    """The bound of ``fetching``."""
    open_objects: int
    """Objects with open readers."""
    resting: bool
    """The disk has failed and is left alone: reads pass through."""
    evicted: dict[str, int]
    """``purged`` by reason: command, first, expired, quota, age, room."""

    def metrics(self) -> dict[str, float]:
        """Prometheus names (``doma_cache_<what>_bytes_total``, ``doma_cache_<what>_total``, …) to values."""
        out: dict[str, float] = {f"doma_cache_{k}_bytes_total": v for k, v in self.bytes.items()}
        out |= {f"doma_cache_{k}_total": v for k, v in self.counts.items()}
        out |= {"doma_cache_used_bytes": self.used, "doma_cache_size_bytes": self.size}
        out |= {"doma_cache_fetching_bytes": self.fetching, "doma_cache_open_objects": self.open_objects}
        out["doma_cache_disk_resting"] = self.resting
        return out


BYTES = ("hit", "prefetched", "miss", "prefetch", "bypass", "origin", "repair", "stored", "purged")


def snapshot(
    counted: Counters,
    *,
    usage: Usage,
    size: int,
    fetching: int,
    memory: int,
    open_objects: int,
    resting: bool,
) -> Stats:
    """The counters and gauges as one value."""
    everything = {f.name: getattr(counted, f.name) for f in fields(counted)}
    delivered = counted.hit + counted.prefetched + counted.miss + counted.bypass
    return Stats(
        bytes={name: everything[name] for name in BYTES},
        counts={name: n for name, n in everything.items() if name not in {*BYTES, "evicted"}},
        hit_ratio=counted.hit / delivered if delivered else None,
        used=usage.total,
        beside=usage.beside,
        size=size,
        fetching=fetching,
        memory=memory,
        open_objects=open_objects,
        resting=resting,
        evicted=dict(counted.evicted),
    )
