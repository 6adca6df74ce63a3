"""What happened, as a value: written with the change, then relayed to whoever waits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to one thing.

    Args:
        kind: ``<noun>.<past participle>``: ``file.landed``, ``file.deleted``, ``request.finished`` …
        subject: The thing, as a path, DID or id.
        data: JSON-ready facts; never a secret.
        owner: ``issuer#subject`` of whom it concerns; empty: nobody in particular.
    """

    kind: str
    subject: str
    data: Mapping[str, Any] = field(default_factory=dict)
    owner: str = ""


Emit = Callable[[Event], None]
"""Takes an event without waiting; the writer behind it appends batches to the outbox."""
