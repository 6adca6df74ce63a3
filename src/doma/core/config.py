"""The configuration: frozen models, one TOML file, then ``DOMA_SECTION__KEY`` from the environment.

Every key works on a laptop by default and carries its meaning; the manual's table is generated from these
models. Unknown keys are errors. Only ``app.py`` reads :class:`Config` whole.
"""

from typing import Annotated, Literal

from pydantic import Field, SecretStr, SerializationInfo, field_serializer

from doma.core.config_columns import Columns, Container, Dask, Datasets
from doma.core.config_section import Bytes, Seconds, Section

__all__ = [
    "S3", "Auth", "Cache", "Columns", "Config", "Container", "Dask", "Database", "Datasets", "Endpoint",
    "Issuer", "Listen", "Monitor", "S3Bucket", "Scan", "Section", "Staging", "Tape", "Tpc",
]  # fmt: skip


class Listen(Section):
    """The one port."""

    address: str = "127.0.0.1:0"
    """``host:port`` to listen on; port 0 takes a free one and keeps it for the life of the home."""
    name: str = ""
    """Public host name of this server (certificate, token audience); empty: the address."""
    plain_http: Literal["loopback", "always", "never"] = "loopback"
    """Where plain HTTP, and so tokens without TLS, is accepted."""
    certificate: str = ""
    """PEM file of the server certificate; empty: one is made, signed by the home's own CA."""
    key: str = ""
    """PEM file of its private key."""
    head_timeout: Seconds = 10
    """A request's head must be complete after this time."""
    idle_timeout: Seconds = 60
    """A kept-alive connection without a request is closed after this time."""
    body_timeout: Seconds = 60
    """A body, or the reader of an answer, may stand still for this time."""
    max_connections: int = Field(default=10_000, ge=1)
    """Connections beyond this are refused, by each process."""
    workers: int = Field(default=1, ge=1, le=128)
    """Processes that serve this port; beyond the first they serve files, s3 and remote stores only."""
    drain: Seconds = 30
    """Running answers may finish for this time at shutdown."""


class Issuer(Section):
    """A trusted token issuer."""

    issuer: str
    """The ``iss`` of its tokens."""
    vo: str = ""
    """The VO that it serves."""
    prefixes: tuple[str, ...] = ("/",)
    """Areas of the endpoint that its scopes are relative to."""
    profile: Literal["wlcg", "scitokens", "any"] = "wlcg"
    """Token profile that is accepted."""
    lenient: bool = False
    """Accept tokens without ``iat`` or ``jti``."""
    wildcard_audience: bool = True
    """Accept the audience ``https://wlcg.cern.ch/jwt/v1/any`` (or ``ANY``)."""
    max_lifetime: Seconds = 0
    """Longest life (``exp`` minus ``iat``) of a token that is accepted; 0: any."""
    ca_file: str = ""
    """CA bundle to fetch its keys with; empty: the system's."""


class Auth(Section):
    """Tokens."""

    embedded: bool = True
    """Run the built-in issuer and trust it."""
    vo: str = "doma"
    """VO of the built-in issuer, the last part of its URL."""
    issuers: tuple[Issuer, ...] = ()
    """Other issuers to trust."""
    audiences: tuple[str, ...] = ()
    """Further names of this server that a token's ``aud`` may hold."""
    clock_skew: Seconds = 60
    """How far ``nbf`` and ``iat`` may lie in the future."""
    lifetime: Seconds = 3600
    """Life of the access tokens that the built-in issuer signs."""
    refresh_lifetime: Seconds = 30 * 24 * 3600
    """Life of its refresh tokens."""
    rotation_grace: Seconds = 24 * 3600
    """How long a refresh token that was used stays good, and gives the same new one again."""
    macaroon_lifetime: Seconds = 24 * 3600
    """Longest validity of a macaroon; 0: none are issued or accepted."""
    query_token: bool = False
    """Whether files may also be asked for with ``?access_token=`` (RFC 6750 §2.3), not only with ``?authz=``.
    Addresses with tokens in them end up in histories and in other programs' logs."""


class Tape(Section):
    """The tape library behind an endpoint ``tape+file:///dir``."""

    buffer: Bytes = 100 << 30
    """Disk that copies of files may take; what is on tape and not pinned is evicted above it."""
    high: float = Field(default=0.95, gt=0, le=1)
    """Eviction starts above this share of ``buffer`` …"""
    low: float = Field(default=0.90, gt=0, le=1)
    """… and ends below this one, the longest unread first."""
    drives: int = Field(default=2, ge=1, le=256)
    """Files that are read or written at the same time."""
    shares: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Activity to its share of the recalled files, else 1; ``archive`` is the writing to tape."""
    attempts: int = Field(default=3, ge=1)
    """A recall that failed so often is given up; archiving never is."""
    retry: Seconds = 60
    """A failed archive or recall is tried again after this time."""
    archive: tuple[str, ...] = ()
    """Command (argument list) that writes a file to the site's tape system; empty: a simulated library."""
    stage: tuple[str, ...] = ()
    """Command that reads a file from it."""
    query: tuple[str, ...] = ()
    """Command that says where a file is on tape."""
    remove: tuple[str, ...] = ()
    """Command that gives a file up; empty: tape copies of deleted files stay."""
    timeout: Seconds = 6 * 3600
    """A command that takes longer is killed and tried again."""
    library: str = ""
    """Folder of the simulated library; empty: ``library`` below the endpoint's own."""
    capacity: Bytes = 1 << 40
    """Bytes of a simulated cartridge."""
    mount_time: Seconds = 0
    """Time to mount a simulated cartridge."""
    seek_time: Seconds = 0
    """Time to wind over a whole one."""
    bandwidth: Bytes = 0
    """Bytes per second of a simulated drive; 0: as fast as the disk."""
    mount_failures: float = Field(default=0, ge=0, le=1)
    """Share of simulated mounts that fail."""
    write_failures: float = Field(default=0, ge=0, le=1)
    """Share of simulated writes that fail."""
    read_failures: float = Field(default=0, ge=0, le=1)
    """Share of simulated reads that fail."""
    losses: float = Field(default=0, ge=0, le=1)
    """Share of simulated reads that find the file lost for ever."""


class Staging(Section):
    """Requests of the Tape REST API, for all endpoints."""

    files: int = Field(default=100_000, ge=1)
    """Files of one request."""
    open_files: int = Field(default=100_000, ge=1)
    """Files that a client may have waiting in all its requests; more is ``busy``."""
    rate: float = Field(default=50, gt=0)
    """Calls per second of one client, after a burst of ten times as many; more is ``busy``."""
    pin: Seconds = 24 * 3600
    """How long a staged file is kept on disk when the request does not say."""
    longest_pin: Seconds = 30 * 24 * 3600
    """The most that a request may say."""
    retention: Seconds = 7 * 24 * 3600
    """Requests are kept for this time after they end."""


class Endpoint(Section):
    """A store behind doors, under a policy."""

    store: str
    """``file:///dir``, ``tape+file:///dir``, ``memory:``, ``https://host/prefix``,
    ``root://host//folder``, ``s3://bucket/prefix?endpoint=https://host&region=us-east-1`` or
    ``cache+https://host/prefix``."""
    replicas: tuple[str, ...] = ()
    """Further origins of a ``cache+…`` store with the same files, tried in this order: ``https://host/prefix``,
    ``root://host//folder``, …"""
    token_file: str = ""
    """A file with the token to show to the remote store (https, root), read again when it changes; empty: the
    client's own token."""
    writable: bool = True
    """Whether anything may be changed through the doors."""
    public: bool = False
    """Whether reading needs no token."""
    issuers: dict[str, tuple[str, ...]] = {}
    """Issuers (URL or VO) that count here, each with its areas; empty: all, with their own ``prefixes``."""
    groups: dict[str, tuple[str, ...]] = {}
    """Group to scopes (``"/vo/prod" = ["storage.read:/"]``) of members whose tokens carry no capability."""
    tape: Tape = Tape()
    """For ``tape+file:///dir``."""
    fsync: bool = True
    """Whether a file is on the disk, not only in memory, before it is published (``file:`` stores)."""
    quota: Bytes | None = None
    """Bytes that the endpoint may hold (``file:`` and ``memory:`` stores)."""
    quotas: dict[str, Bytes] = {}
    """Path below which so many bytes may lie (``"/vo/user" = 1000000000``)."""


class Cache(Section):
    """The caching store."""

    size: Bytes = 20 << 30
    """Disk the cache may use."""
    high: float = Field(default=0.95, gt=0, le=1)
    """Purge starts above this share of ``size`` …"""
    low: float = Field(default=0.90, gt=0, le=1)
    """… and ends below this one."""
    lifetime: Seconds = 24 * 3600
    """How long an object counts as fresh when its origin does not say (HTTP origins)."""
    file_lifetime: Seconds = 3600
    """The same for file and root origins."""
    stale_if_error: Seconds = 24 * 3600
    """How long an expired object may be served while its origin is away."""
    memory: Bytes = 128 << 20
    """Bytes of running fetches; beyond it, reads pass through uncached."""
    allow: tuple[str, ...] = ()
    """Origins that a client may name in the path besides the fixed one: globs over ``https://host[:port]``,
    ``root://host[:port]``."""
    ignore_query: tuple[str, ...] = (
        "X-Amz-*", "X-Goog-*", "AWSAccessKeyId", "GoogleAccessId", "Signature", "Expires", "Policy",
        "Key-Pair-Id", "scitag.*", "xrd*.*", "oss.*", "directread", "skipstat",
    )  # fmt: skip
    """Names (globs, in any case) of query parameters that say nothing of the content; a request with another
    one is refused where the origin speaks HTTP. Credentials (``authz``, ``access_token``) never count."""
    lifetimes: dict[str, Seconds | Literal["immutable"]] = {}
    """Path below which another lifetime counts where the origin does not say (``"/mc" = "immutable"``)."""
    fetches: int = Field(default=32, ge=1)
    """Requests to all origins that run at once."""
    share: float = Field(default=0.25, gt=0, le=1)
    """The part of ``fetches`` that one origin may have while another one waits for its own …"""
    alone: float = Field(default=0.9, gt=0, le=1)
    """… and otherwise."""
    waiting: int = Field(default=4096, ge=1)
    """Requests that may wait for one origin, half of them of one client; others are refused with 429."""
    replicas_by_size: bool = False
    """Whether a replica of equal size counts as the same file where neither checksum nor time tells."""
    foresight: bool = True
    """Whether the columns that clients read of ROOT and Parquet files are fetched a cluster ahead."""
    quotas: dict[str, Bytes] = {}
    """Path to the disk bytes below it beyond which it goes before others (``"/store/user" = 1000000000``)."""
    vo_quotas: dict[str, Bytes] = {}
    """The same by the VO whose requests brought the objects."""
    age: Seconds = 0
    """Objects that were not read for this time are removed; 0: never."""
    pin: Seconds = 24 * 3600
    """How long a pin holds when the request does not say."""
    longest_pin: Seconds = 30 * 24 * 3600
    """The most that a request may say."""
    pin_quota: float = Field(default=0.1, ge=0, le=1)
    """Share of ``size`` that one identity may pin."""
    pin_share: float = Field(default=0.5, ge=0, le=1)
    """Share of ``size`` that all pins together may hold."""
    prestages: int = Field(default=4, ge=1)
    """Files that are prestaged at once; others queue."""
    prestage_queue: int = Field(default=100, ge=0)
    """Files that may queue; beyond this a request is refused with 429."""
    scrub: Bytes = 1 << 20
    """Bytes per second that are read to find damage which no reader meets; 0: none."""


class Scan(Section):
    """Storage-side scan."""

    memory: Bytes = 256 << 20
    """Bytes one query may hold."""
    concurrency: int = Field(default=4, ge=1)
    """Queries that run at once; others get ``busy``."""
    ticket_life: Seconds = 3600
    """Life of a Flight ticket."""


class S3Bucket(Section):
    """Keys for one bucket of another S3 service."""

    access_key: str = ""
    """Access key id."""
    secret_key: SecretStr = SecretStr("")
    """Secret key."""
    session_token: SecretStr = SecretStr("")
    """Session token, where the key has one."""

    @field_serializer("secret_key", "session_token")
    def _hidden(self, value: SecretStr, info: SerializationInfo) -> str:
        """Stars, unless whoever writes it down asks for secrets: a process that hands on its settings."""
        return value.get_secret_value() if (info.context or {}).get("secrets") else str(value)


class S3(Section):
    """The s3 door, and buckets that serve as stores."""

    key_lifetime: Seconds = 7 * 24 * 3600
    """Longest life of an access key; it never outlives the token that asked for it."""
    upload_lifetime: Seconds = 24 * 3600
    """Multipart uploads that nothing came for in this time are removed."""
    buckets: dict[str, S3Bucket] = {}
    """Keys by bucket, for ``s3://`` stores. Else ``AWS_ACCESS_KEY_ID`` and its kin from the environment."""


class Database(Section):
    """Tables."""

    url: str = ""
    """SQLAlchemy URL; empty: SQLite in the home. ``postgresql+psycopg://…`` needs the extra ``postgres``."""


class Tpc(Section):
    """Third-party copy: transfers between this server and another one that a client names."""

    allow: tuple[str, ...] = ()
    """Other servers besides those at public addresses: ``loopback``, ``private``, networks, host names."""
    deny: tuple[str, ...] = ()
    """Servers that are never spoken to, in the same words; asked before ``allow``."""
    plain_http: bool = False
    """Whether ``http://`` is spoken: bytes and tokens in the clear."""
    ca_file: str = ""
    """Authorities to trust besides the system's and the grid's: a PEM file, or a folder of hashed ones. It
    counts for origins of caches and other remote stores, too."""
    forward_credentials: tuple[tuple[str, str], ...] = ()
    """Pairs of ``https://host[:port]``: a redirect from the first to the second keeps the credentials."""
    stall: Seconds = 60
    """A transfer without any progress for this time fails."""
    min_rate: Bytes = 0
    """Bytes per second; a transfer that is slower over ``rate_window`` fails."""
    rate_window: Seconds = Field(default=300, gt=0)
    """Time over which the rate is measured."""
    per_issuer: int = Field(default=200, ge=1)
    """Transfers of one token issuer's clients that run at once; others queue."""
    per_host: int = Field(default=64, ge=1)
    """Transfers with one remote host that run at once; others queue."""
    waiting: int = Field(default=1000, ge=0)
    """Transfers that may queue; beyond this a request is refused with 429."""
    scitags: str = ""
    """``host[:port]`` of a collector of SciTags flow marks (firefly, UDP); empty: none are sent."""


class Monitor(Section):
    """Monitoring packets in XRootD's form, for its collectors and shovelers."""

    dest: tuple[str, ...] = ()
    """``host:port`` (UDP) of each collector or shoveler; empty: none are sent."""
    site: str = ""
    """Name of the site, for the identification."""
    instance: str = "doma"
    """Name of this server among those of a host."""
    flush: Seconds = Field(default=30, gt=0)
    """Records are gathered for this time at most."""
    progress: int = Field(default=2, ge=1)
    """At every so many flushes it is also told how far open files are."""
    ident: Seconds = 3600
    """Time between two identifications."""
    idle: Seconds = 30
    """Reads over HTTP of one client and object belong together until it is still for this time."""
    records: bool = True
    """Whether each file read through a cache gives an event ``object.read`` when it is closed."""


class Config(Section):
    """Everything that can be set."""

    listen: Listen = Listen()
    auth: Auth = Auth()
    database: Database = Database()
    endpoints: dict[str, Endpoint] = {}
    """Endpoints by name (the first path component). Empty: ``site`` and ``cache``."""
    cache: Cache = Cache()
    tpc: Tpc = Tpc()
    columns: Columns = Columns()
    datasets: Datasets = Datasets()
    scan: Scan = Scan()
    s3: S3 = S3()
    staging: Staging = Staging()
    monitor: Monitor = Monitor()
