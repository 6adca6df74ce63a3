"""The configuration: frozen models, one TOML file, then ``DOMA_SECTION__KEY`` from the environment.

Every key works on a laptop by default and carries its meaning; the manual's table is generated from these
models. Unknown keys are errors. Only ``app.py`` reads :class:`Config` whole.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, SerializationInfo, field_serializer

Bytes = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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


class Container(Section):
    """An experiment's code generator, and the image that runs what it generates."""

    generator: str = ""
    """Program of the site: ``GENERATOR CODEGEN FOLDER``, the selection on standard input; it writes
    ``transform_single_file.sh`` and what belongs to it into the folder."""
    runner: Literal["command", "apptainer", "kubernetes"] = "apptainer"
    """What runs an image; ``command``: nothing, the code runs on this machine and is trusted."""
    image: str = ""
    """The image where the selection names none."""
    images: tuple[str, ...] = ()
    """Prefixes below which a selection may name its own image."""
    timeout: Seconds = Field(default=600, gt=0)
    """Wall-clock limit of one file."""
    input_size: Bytes = 20 << 30
    """Largest input; it is copied to where the image can read it."""
    volume: str = ""
    """Folder for the files of runs; with ``kubernetes`` the place where ``claim`` is mounted here."""
    server: str = "https://kubernetes.default.svc"
    """The API server."""
    namespace: str = "default"
    """Namespace of the jobs."""
    claim: str = ""
    """Persistent volume claim over which files pass; it must allow many writers."""
    token_file: str = ""
    """Token for the API server; empty: the one of the pod's service account."""
    ca_file: str = ""
    """Authority of the API server; empty: as the pod was told."""
    memory: Bytes = 4 << 30
    """Memory of a job."""
    cpu: str = "1"
    """Processors of a job, in Kubernetes' words."""
    user: int = Field(default=1000, ge=1)
    """User id of a job."""


class Dask(Section):
    """Column delivery on Dask."""

    scheduler: str = ""
    """Address of a scheduler, ``tls://host:8786``; empty: a cluster is made."""
    cluster: Literal["local", "kubernetes", "gateway", "htcondor", "slurm"] = "local"
    """What makes a cluster: LocalCluster, KubeCluster, GatewayCluster, HTCondorCluster, SLURMCluster."""
    workers: int = Field(default=2, ge=1)
    """Workers that are asked for, except of ``local``."""
    options: dict[str, Any] = {}
    """Arguments of the cluster's class, in Dask's words."""
    shared: bool = False
    """Workers see the home under the same path and write results there; otherwise they upload them."""


class Columns(Section):
    """Column delivery."""

    pool: Literal["local", "dask"] = "local"
    """Where files are worked on: in processes of this machine, or by Dask."""
    dask: Dask = Dask()
    """The Dask of ``pool = "dask"``."""
    workers: int = Field(default=2, ge=1)
    """Warm worker processes."""
    step: Bytes = 16 << 20
    """Bytes of columns that a worker holds at once."""
    worker_memory: Bytes = 4 << 30
    """Address space a worker may grow by."""
    file_timeout: Seconds = 600
    """Wall-clock limit of one file."""
    stall: Seconds = 120
    """A file in which neither a byte nor an event moves for this time is tried again by another worker."""
    lease: Seconds = 30
    """A worker that shows no sign of life for this time loses its file."""
    unfinished: int = Field(default=500_000, ge=1)
    """Files and requests that a user may have unfinished; who asks for more is told to come again."""
    retention: Seconds = 30 * 24 * 3600
    """Requests and results are kept for this time after they end."""
    cache_size: Bytes = 10 << 30
    """Bytes of results that are kept after their requests are gone, for whoever asks the same again."""
    cache_age: Seconds = 30 * 24 * 3600
    """A result that nobody asked for in this time is not given to another request."""
    results: str = ""
    """Store of the results, ``s3://bucket/prefix`` or ``file:///folder``; empty: a folder of the home."""
    url_life: Seconds = 30 * 24 * 3600
    """Addresses of results are good for this time, as long as the results are kept."""
    inputs: tuple[str, ...] = ()
    """Origins in private networks that may be read (``https://host:port``, ``root://host:port``); ``file://``:
    files of this machine, too."""
    flight: dict[str, str] = {}
    """Scan services that run filters beside the data: origin of the files (``https://host:port``) to address
    (``grpc+tls://host:port``); a path there is the path of the file here."""
    cache: str = "cache"
    """Cache that inputs of other sites are read through: an endpoint of this server, for the origins in
    ``cache.allow``, or the URL of another one; empty: none. What it does not give is read at its origin."""
    cache_for: tuple[str, ...] = ("*",)
    """Origins (globs over ``https://host[:port]``, ``root://host[:port]``) that a cache by URL serves."""
    buckets: tuple[str, ...] = ()
    """``s3://bucket/prefix?endpoint=https://host``, whose objects every user may have read as
    ``s3://bucket/prefix/key``, with the keys in ``s3.buckets``."""
    open: bool = False
    """Single-user mode: who runs the system may ask for columns without a token, from its own machine."""
    python: Literal["auto", "off", "unsafe-single-user"] = "auto"
    """Python functions: where a self-test shows that this machine can isolate them, never, or with nothing
    but limits around them, as the user who runs the system: only where nobody else can submit."""
    python_memory: Bytes = 2 << 30
    """Address space of a function."""
    python_timeout: Seconds = Field(default=300, ge=1)
    """Wall-clock limit of a function on one file, and its processor time."""
    python_output: Bytes = 2 << 30
    """Bytes that a function may return for one file."""
    python_scratch: Bytes = Field(default=256 << 20, ge=1 << 20)
    """Bytes of files that a function may write while it runs."""
    python_uids: int = Field(default=0x70000000, ge=1000, lt=0x7F000000)
    """Where the system runs as root, a function runs as this user id plus its worker's process id."""
    containers: dict[Literal["topcp", "atlasr21", "atlasr22", "atlasxaod", "cms"], Container] = {}
    """Code generators of experiments, by the name that clients use; only these are offered."""


class Datasets(Section):
    """Data identifiers that column delivery resolves."""

    default: str = "rucio"
    """The scheme of an identifier that is written without one."""
    age: Seconds = 24 * 3600
    """An answer of a catalogue counts for this time."""
    timeout: Seconds = 300
    """A catalogue must answer within this time."""
    prefer: tuple[str, ...] = ()
    """Prefixes of URLs whose replicas are tried first, in this order; then ``root://``, then the rest."""
    xrootd: bool = True
    """Whether ``xrootd://root://host//folder/*.root`` is offered."""
    opendata: str = "https://opendata.cern.ch"
    """Server of ``cernopendata://NUMBER``; empty: not offered."""
    rucio: str = ""
    """Server of ``rucio://scope:name``; empty: not offered."""
    rucio_auth: str = ""
    """Authentication server of Rucio; empty: ``rucio``."""
    rucio_account: str = ""
    """Rucio account that asks."""
    rucio_token_file: str = ""
    """A file with the token to show to Rucio, read again for every question; else one is asked for …"""
    rucio_user: str = ""
    """… with this user name …"""
    rucio_password: SecretStr = SecretStr("")
    """… and this password, …"""
    rucio_cert_file: str = ""
    """… or with this certificate or proxy and its key, a PEM file."""
    rucio_ca_file: str = ""
    """CA bundle for Rucio besides the system's."""

    @field_serializer("rucio_password")
    def _hidden(self, value: SecretStr, info: SerializationInfo) -> str:
        """Stars, unless whoever writes it down asks for secrets: a process that hands on its settings."""
        return value.get_secret_value() if (info.context or {}).get("secrets") else str(value)


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
