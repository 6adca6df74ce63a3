"""What travels and what is stored: requests, files, tasks of the workers, and their states.

State words are ServiceX's own. ``wanted`` says what the user wants, ``state`` where the request stands.

Source: servicex.md §3.3, §3.4 and §4.1 of the project's contracts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from doma.auth.model import Identity
from doma.core.state import Machine

ENGINE = "2"
"""Version of the interpreter: part of the key of cached results. Raise it when an answer changes."""


class State(StrEnum):
    """Where a request stands."""

    SUBMITTED = "Submitted"
    LOOKUP = "Lookup"
    PENDING = "Pending Lookup"
    """Another request looks for the same dataset."""
    RUNNING = "Running"
    COMPLETE = "Complete"
    FATAL = "Fatal"
    CANCELED = "Canceled"
    BAD = "Bad Dataset"

    @property
    def final(self) -> bool:
        return self in FINAL


FINAL = frozenset({State.COMPLETE, State.FATAL, State.CANCELED, State.BAD})


class FileState(StrEnum):
    """Where one file of a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "success"
    FAILED = "failure"
    CANCELED = "canceled"


class FileEvent(StrEnum):
    """What can happen to a file."""

    CLAIM = "claim"
    FINISH = "finish"
    FAIL = "fail"
    RETRY = "retry"
    CANCEL = "cancel"


FILES = Machine(
    FileState.WAITING,
    {
        (FileState.WAITING, FileEvent.CLAIM): FileState.RUNNING,
        # A lease that ran out: another worker takes the file, under the next attempt number.
        (FileState.RUNNING, FileEvent.CLAIM): FileState.RUNNING,
        (FileState.RUNNING, FileEvent.FINISH): FileState.DONE,
        (FileState.RUNNING, FileEvent.FAIL): FileState.FAILED,
        (FileState.RUNNING, FileEvent.RETRY): FileState.WAITING,
        (FileState.WAITING, FileEvent.CANCEL): FileState.CANCELED,
        (FileState.RUNNING, FileEvent.CANCEL): FileState.CANCELED,
    },
)
"""The life of one file of a request."""


def verdict(files: int, completed: int, failed: int) -> State:
    """The state of a request by its counters; every file failed is Fatal, some done is Complete.

    >>> [str(verdict(*counts)) for counts in ((3, 2, 1), (2, 0, 2), (2, 1, 0), (0, 0, 0))]
    ['Complete', 'Fatal', 'Running', 'Complete']
    """
    if completed + failed < files:
        return State.RUNNING
    return State.FATAL if files and not completed else State.COMPLETE


@dataclass(frozen=True, slots=True)
class Grant:
    """Whose right to read a request uses; it holds no token. Tokens are minted from it when needed."""

    issuer: str
    subject: str
    scopes: tuple[str, ...] = ()
    """Only the ``storage.read`` words of the token that submitted."""

    @property
    def owner(self) -> str:
        return f"{self.issuer}#{self.subject}"

    @classmethod
    def of(cls, identity: Identity) -> "Grant":
        """The grant of a verified token, narrowed to reading."""
        read = tuple(s for s in identity.scopes if s == "storage.read" or s.startswith("storage.read:"))
        return cls(identity.issuer, identity.subject, read)


@dataclass(frozen=True, slots=True)
class Input:
    """One file and where else it lies."""

    url: str
    replicas: tuple[str, ...] = ()
    """Further URLs of the same file, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A question: one selection over some files."""

    selection: str
    files: tuple[str, ...]
    """URLs; empty for a dataset that is still to be looked up."""
    title: str | None = None
    did: str | None = None
    codegen: str = "uproot"
    format: str = "parquet"
    destination: str = "object-store"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it stands now."""

    id: str
    owner: str
    title: str | None
    did: str
    selection: str
    codegen: str
    format: str
    destination: str
    state: State
    wanted: str
    """Empty, or ``Canceled``."""
    failure: str | None
    files: int
    completed: int
    failed: int
    submitted: float
    finished: float | None
    dataset: int | None = None
    """The dataset's number."""
    read: int = 0
    """Bytes taken from the inputs of the files that ended."""
    bytes: int = 0
    """Of the results, as ``events``, their rows."""
    events: int = 0
    pushed: int = 0
    """Files whose filter ran beside the data."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a request is: what has ended, and what the files that run have done so far."""

    files: int
    completed: int
    failed: int
    running: int
    entries: int
    """Of the inputs, as far as they are known."""
    passed: int
    """Those of them that are done."""
    read: int
    """Bytes taken from the inputs."""
    bytes: int
    """Of the results."""
    events: int
    """Rows of the results."""
    seconds: float = 0.0
    """Of the workers, for all files that are done; ``quickest`` and ``slowest``: for one."""
    quickest: float = 0.0
    slowest: float = 0.0
    pushed: int = 0
    """Files whose filter ran beside the data."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What an operator sees of a request: whose it is and how far, never what it asks."""

    id: str
    title: str | None
    owner: str
    state: State
    files: int
    completed: int
    failed: int
    submitted: float
    finished: float | None


@dataclass(frozen=True, slots=True)
class Overview:
    """Everybody's requests: numbers of them by state, and the youngest, unfinished ones first."""

    waiting: int
    running: int
    complete: int
    """As ``failed`` and ``canceled``: of those that ended in the last day."""
    failed: int
    canceled: int
    recent: tuple[Glance, ...]


@dataclass(frozen=True, slots=True)
class FileResult:
    """One finished file of a request."""

    id: int
    request: str
    number: int
    url: str
    state: FileState
    reason: str | None
    name: str | None
    """Object name, unique in the request."""
    bytes: int
    events: int
    """Rows of the result."""
    seconds: float
    read: int
    """Bytes that were taken from the input."""
    visible: int
    """Microseconds, strictly increasing in the order in which the results of a request became visible."""
    attempt: int = 0
    """How often it was begun."""
    cached: bool = False
    """The result was taken over from another request."""
    entries: int = 0
    """Entries of the input, as far as they are known."""
    passed: int = 0
    """Those of them that are done."""
    moved: float | None = None
    """When it last told of progress."""
    place: str | None = None
    """The replica that was read."""
    log: str | None = None
    """What the user's code printed."""
    history: tuple[Mapping[str, Any], ...] = ()
    """Attempts that failed: ``attempt``, ``reason``, ``at`` (Unix seconds)."""
    pushed: bool = False
    """Its filter ran beside the data."""


@dataclass(frozen=True, slots=True)
class ResultUrl:
    """Where one result can be read, by itself."""

    url: str
    headers: Mapping[str, str]
    expires: int


@dataclass(frozen=True, slots=True)
class Task:
    """One file for a worker process. The token is in memory only."""

    url: str
    selection: str
    output: str
    """Local path of the file to write; empty: only check the names against the file."""
    token: str = field(default="", repr=False)
    codegen: str = "uproot"
    format: str = "parquet"
    replicas: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Further places of the file, each with its token, tried in turn when one does not open."""
    known: tuple[str, ...] = ()
    """Versions of the input whose result is cached already."""
    step: int = 16 << 20
    ca_file: str = ""
    allow: tuple[str, ...] = ()
    """Origins that may be read although they lie in a private network; ``file://`` allows local paths."""
    timeout: float = 600.0
    sandbox: str = ""
    """How python functions are isolated, and their limits; empty: they do not run here."""
    flight: str = ""
    """A scan service that reads the same file (``grpc+tls://host:port/dataset``); empty: there is none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker made of a file."""

    version: str
    """The input's version; empty if its server tells none."""
    cached: bool = False
    """Nothing was computed since the version was known."""
    rows: int = 0
    bytes: int = 0
    read: int = 0
    """Bytes taken from the input."""
    seconds: float = 0.0
    columns: tuple[str, ...] = ()
    events: int = 0
    """Entries of the input."""
    url: str = ""
    """The replica that was read."""
    log: str = ""
    """What the user's code printed, its last 64 KiB."""
    pushed: bool = False
    """The filter ran beside the data."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a file is."""

    events: int = 0
    """Entries of the input that are done."""
    of: int = 0
    """Entries of the input; 0: not known yet."""
    read: int = 0
    """Bytes taken from the input."""


class Pool(Protocol):
    """Warm worker processes."""

    @property
    def slots(self) -> int:
        """How many files run at once."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def run(self, task: Task, tell: Callable[[Progress], None] | None = None) -> Outcome:
        """Run one file in a worker; ``tell`` hears of its progress.

        Raises:
            DomaError: what is wrong with the file or the query; ServiceUnavailable when the worker died,
            TimedOut when it hung. Cancelling stops the worker.
        """


class TokenSource(Protocol):
    """Gives tokens in the name of a user who is not there any more."""

    async def token(self, owner: Grant, url: str) -> str:
        """A fresh read token for an input; empty: read without. Never give one to a foreign host."""


UrlSigner = Callable[[str, str, float], str]
"""``(owner, path in the result store, expiry)`` gives a narrow read token for that path."""
