"""What a verified token says, and the verbs that a policy decides on.

Source: WLCG Common JWT Profile 1.3; rules T1-T20 and §5 of the token contract.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum


class Verb(StrEnum):
    """What one can want of a path; tokens.md §5 maps methods to these."""

    READ = "read"
    """Bytes and listings."""
    LIST = "list"
    """Listings alone: read, or a macaroon for it."""
    STAT = "stat"
    """Metadata and digests: any of read, create, modify, stage; also of ancestors of a granted path."""
    CREATE = "create"
    """A new file or directory, rename within granted paths."""
    MODIFY = "modify"
    """Overwrite, delete, rename."""
    STAGE = "stage"
    """Bring online, pin, release."""
    POLL = "poll"
    """Locality only."""


@dataclass(frozen=True, slots=True)
class Capability:
    """One granted right: ``storage.<verb>:<path>``, the path relative to the issuer's area."""

    verb: Verb
    path: str
    """Canonical, except that a trailing slash is kept: it says "directory" (rule T13)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified token as a plain value; it holds no secret."""

    issuer: str
    """As the site's configuration spells it."""
    subject: str
    """Printable ASCII; empty only for a SciTokens token without ``sub``."""
    expires: float
    """Unix seconds."""
    vo: str = ""
    client: str = ""
    audience: tuple[str, ...] = ()
    capabilities: tuple[Capability, ...] = ()
    scopes: tuple[str, ...] = ()
    """All scope words as written, for service scopes (``fts``, ``compute.*``, ``doma.admin``)."""
    groups: tuple[str, ...] = ()
    jti: str = ""
    only: str = ""
    """Name of the one endpoint at which it counts, where its capabilities' paths then begin (a macaroon);
    empty: wherever its issuer does."""

    def __str__(self) -> str:
        """How messages and logs name it.

        >>> str(Identity("https://iam.example.org/cms", "alice", 0.0, jti="5f0e"))
        'alice (issuer https://iam.example.org/cms, token 5f0e)'
        """
        token = f", token {self.jti}" if self.jti else ""
        return f"{self.subject or 'nobody'} (issuer {self.issuer}{token})"


bearer: ContextVar[str | None] = ContextVar("bearer", default=None)
"""The caller's own token during a request: an http origin passes it on (contract cache.md §8)."""
