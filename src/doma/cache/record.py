"""What the cache knows of one version of one object, as it stands on disk.

One line of prefix with a CRC32C, then JSON. A record that does not fit its checksum, its name or its types is
no record: the object is forgotten and fetched again, and size 0 is never assumed (cases C5, C7).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256

from crc32c import crc32c

from doma.store.http_status import is_strong
from doma.store.protocol import Stat

_MAGIC = b"doma-cache-1 "
LARGEST = 64 << 10
"""Bytes; a longer file is no record."""


@dataclass(frozen=True, slots=True)
class Record:
    """One version of one object and when it was last known to be current."""

    origin: str
    """Where it comes from: ``site``, ``https://host:port``."""
    path: str
    """Path at the origin."""
    size: int
    version: str
    modified: float
    generation: str
    """Names the file that holds its pages; no two versions share one."""
    validated: float
    """Unix seconds of the last validation."""
    age: float = 0.0
    """Seconds it had spent in other caches when it was validated."""
    cache_control: str = ""
    lifetime: float = 0.0
    """Seconds it is fresh when ``cache_control`` does not say."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    replica: str = ""
    """The origin whose version this is, where the object has several; empty: ``origin``."""
    vo: str = ""
    """Whose request brought it, for quotas; empty: not known."""

    @property
    def key(self) -> str:
        """The name of the object on disk."""
        return key_of(self.origin, self.path)

    def stat(self, path: str) -> Stat:
        """What the store tells of it under the cache's own path."""
        return Stat(path, self.size, self.shown_version, self.modified, checksums=self.checksums)

    @property
    def shown_version(self) -> str:
        """The strong validator that clients get; where the origin has none, that of our copy (F15, F18)."""
        return self.version if is_strong(self.version) else f"{self.version}.{self.generation}"

    @property
    def comparable(self) -> bool:
        """Whether an equal version at the origin means equal content; not if it has no validator at all."""
        return not self.version.startswith("weak.none.")


def key_of(origin: str, path: str) -> str:
    """The name of an object on disk: 64 hex digits, so that no foreign name becomes a file name."""
    return sha256(f"{origin}\0{path}".encode()).hexdigest()


def encode(record: Record) -> bytes:
    """The bytes of a record."""
    body = json.dumps(asdict(record), sort_keys=True).encode()
    return _MAGIC + b"%08x\n" % crc32c(body) + body


def decode(data: bytes, key: str) -> Record | None:
    """The record in these bytes, or None if they are not the record of this key."""
    head, _, body = data.partition(b"\n")
    if head != _MAGIC + b"%08x" % crc32c(body):
        return None
    try:
        record = Record(**json.loads(body))
    except (ValueError, TypeError):
        return None
    # The checksum makes damage visible; this makes a record under a wrong name visible.
    return record if record.key == key else None
