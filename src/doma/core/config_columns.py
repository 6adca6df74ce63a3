"""The sections of the configuration for column delivery."""

from typing import Any, Literal

from pydantic import Field, SecretStr, SerializationInfo, field_serializer

from doma.core.config_section import Bytes, Seconds, Section


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
    output_size: Bytes = 20 << 30
    """Bytes of files that an image may write for one input; looked at every second."""
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
