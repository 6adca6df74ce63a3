"""Experiment code generators: a selection becomes a folder of code, which an image runs on one file.

The generator is a program of the site: ``GENERATOR CODEGEN FOLDER``, the selection on its standard input. It
fills the folder with ``transform_single_file.sh``, which is run as
``bash FOLDER/transform_single_file.sh INPUT OUTPUT FORMAT`` in the image by the configured runner; exit code
0 is success. The output, a ROOT file, is read as data and written by the sink of the request.

Source: servicex.md §8.4 of the project's contracts.
"""

import contextlib
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uproot

from doma.columns.container_run import SCRIPT, Ended, Order, Runner, run_process, runner_of
from doma.columns.evaluate import Table
from doma.columns.function import file_name
from doma.columns.model import ENGINE, Progress
from doma.columns.query import Tell
from doma.columns.remote import Bytes, LocalFile
from doma.columns.sandbox_run import fits, remove
from doma.columns.sink import Sink
from doma.columns.source import open_source
from doma.columns.source_root import TREES
from doma.core.config import Container
from doma.core.errors import BadQuery, LimitExceeded, ServiceUnavailable

MAX_SELECTION = 1 << 20
LOOK = 1.0
"""Seconds between two looks at how much a transformer has written."""
PIECE = 4 << 20
FORMAT = "root-file"
"""What transformers are asked for; the result's own format is the sink's affair."""
TOPCP = {
    "reco": str, "parton": str, "particle": str, "max_events": int, "no_systematics": bool, "no_filter": bool,
    "image": str,
}  # fmt: skip
"""Keys of a topcp selection and their types; each may be null."""


class ContainerQuery:
    """A selection for a configured code generator, behind :class:`doma.columns.query.Query`.

    Attributes:
        log: What the transformer printed, its last 64 KiB; after a run.
    """

    def __init__(self, codegen: str, selection: str, settings: str = "") -> None:
        """Check a selection as far as that goes.

        Args:
            codegen: Its name among the configured ones.
            selection: As its clients send it.
            settings: JSON of its :class:`doma.core.config.Container`; empty: it will not run here.
        """
        if not selection.strip() or len(selection) > MAX_SELECTION:
            raise BadQuery(f"selection: it is empty, or longer than {MAX_SELECTION >> 10} KiB")
        self._codegen, self._selection = codegen, selection
        self._settings = Container.model_validate_json(settings) if settings else None
        wanted = topcp(selection).get("image") if codegen == "topcp" else None
        self._image = ""
        if self._settings is not None:
            self._image = allowed(wanted or self._settings.image, self._settings)
        self.log = ""

    @property
    def digest(self) -> str:
        how = self._settings.model_dump_json() if self._settings is not None else ""
        text = "\0".join([ENGINE, self._codegen, how, self._image, self._selection])
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self, data: Bytes) -> tuple[str, ...]:
        return ()  # only the transformer knows

    def run(self, data: Bytes, sink: Sink, step: int, tell: Tell) -> tuple[str, ...]:
        if self._settings is None:
            raise ServiceUnavailable(f"{self._codegen}: this worker runs no containers; another one may")

        def tick() -> None:
            tell(Progress(0, 0, data.taken))

        with _folder(self._settings) as folder:
            order = self._prepared(folder, data, tick)
            ended = self._transformed(order, runner_of(self._settings), data.url, tick)
            self.log = ended.log
            return deliver(order.output, data.url, sink, step, tick)

    def _prepared(self, folder: Path, data: Bytes, tick: Callable[[], None]) -> Order:
        """The generated code and the input, in the run's folder."""
        assert self._settings is not None
        most = self._settings.input_size
        if data.size > most:
            raise LimitExceeded(f"{data.url}: {data.size} bytes; {self._codegen} takes files up to {most}")
        generated, inside, out = folder / "generated", folder / "input", folder / "output"
        for place in (generated, inside, out):
            place.mkdir()
        out.chmod(0o777)  # the image may run as any user; the folder above is ours alone
        generate(self._settings.generator, self._codegen, self._selection, generated)
        path = inside / file_name(data.url)
        with path.open("xb") as file:
            for start in range(0, data.size, PIECE):
                file.write(data.read(start, min(data.size, start + PIECE)))
                tick()
        return Order(
            self._image, folder, generated, path, out / "result.root", FORMAT, self._settings.timeout
        )

    def _transformed(self, order: Order, runner: Runner, url: str, tick: Callable[[], None]) -> Ended:
        most, looked = self._settings.output_size if self._settings else 0, 0.0

        def watch() -> None:
            nonlocal looked
            tick()
            if time.monotonic() - looked > LOOK:
                self._measure(order, most, url)
                looked = time.monotonic()

        ended = runner.run(order, watch)
        self._measure(order, most, url)
        lines = ended.log.strip().splitlines() or ["it printed nothing"]
        if ended.code != 0:
            said = lines[-1][:300]
            raise BadQuery(f"{url}: the transformer ended with exit code {ended.code}: {said}", log=ended.log)
        if order.output.is_symlink() or not order.output.is_file():
            raise BadQuery(f"{url}: the transformer succeeded, but wrote no output", log=ended.log)
        return ended

    @staticmethod
    def _measure(order: Order, most: int, url: str) -> None:
        """Raise LimitExceeded if a transformer has written too much, or what cannot be looked into."""
        if not fits(order.output.parent, most):
            raise LimitExceeded(
                f"{url}: the transformer wrote more than {most >> 20} MiB, too many files, or folders that"
                " cannot be listed; write less, or raise output_size of its container"
            )


def topcp(selection: str) -> dict[str, Any]:
    """The keys of a topcp selection.

    Raises:
        BadQuery: no JSON object of the known keys and types, or nothing to run.

    >>> topcp('{"reco": "CommonServices: {}", "max_events": -1}')["max_events"]
    -1
    """
    try:
        found = json.loads(selection)
    except (ValueError, RecursionError) as e:
        raise BadQuery(f"selection: a topcp selection is a JSON object: {str(e)[:200]}") from e
    if not isinstance(found, dict):
        raise BadQuery("selection: a topcp selection is a JSON object")
    for key, value in found.items():
        kind = TOPCP.get(key)
        if kind is None:
            raise BadQuery(f"selection: topcp has no key {key[:40]!r}; there is {', '.join(TOPCP)}")
        if value is not None and type(value) is not kind:  # True is an int to Python, but not here
            raise BadQuery(f"selection: {key}: {kind.__name__} or null is expected")
    if not any(found.get(key) for key in ("reco", "parton", "particle")):
        raise BadQuery("selection: one of reco, parton and particle is needed, the text of a YAML file")
    if (found.get("max_events") or 0) < -1:
        raise BadQuery("selection: max_events: -1, for all, or a number of events")
    return found


def allowed(image: str, settings: Container) -> str:
    """The image, if it may run here: the configured one, or below an allowed prefix, part by part.

    >>> allowed("reg.org/atlas/x:1", Container(image="a", images=("reg.org/atlas/",)))
    'reg.org/atlas/x:1'
    """
    if image == settings.image:
        return image
    plain = image.isascii() and image.isprintable() and not set(image) & set(" \\\"'`$;&|<>")
    if not plain or image.startswith("-") or ".." in image.split("/") or len(image) > 300:
        raise BadQuery(f"image: {image[:100]!a} is no usable name of an image")
    if not any(image.startswith(prefix.rstrip("/") + "/") for prefix in settings.images):
        may = ", ".join(settings.images) or "none but the configured one"
        raise BadQuery(f"image: {image[:100]} may not run here; allowed are images below: {may}")
    return image


def generate(generator: str, codegen: str, selection: str, folder: Path) -> None:
    """Let the site's generator turn a selection into code.

    Raises:
        BadQuery: it refused, with its last line. ServiceUnavailable: it cannot be run.
    """
    ended = run_process([generator, codegen, str(folder)], folder, 60.0, selection.encode())
    if ended.code != 0:
        said = (ended.log.strip().splitlines() or [f"exit code {ended.code}"])[-1][:300]
        raise BadQuery(f"selection: the generator of {codegen} refuses it: {said}", log=ended.log)
    if not (folder / SCRIPT).is_file():
        raise ServiceUnavailable(f"{codegen}: its generator made no {SCRIPT}; tell the administrator")


def deliver(path: Path, url: str, sink: Sink, step: int, tick: Callable[[], None]) -> tuple[str, ...]:
    """Read a transformer's output as data: its trees into the sink; the columns of the first."""
    data = LocalFile(f"{url} (transformed)", str(path))
    try:
        with uproot.open(path) as file:
            kinds = file.classnames(cycle=False)
            trees = [name for name, kind in kinds.items() if kind in TREES]
            first: tuple[str, ...] = ()
            for name in trees:
                source = open_source(data, name)
                first = first or source.names
                sink.write(Table(source.read(source.names, 0, 0)), name)
                for window in source.windows(source.names, step):
                    sink.write(Table({n: window.column(n) for n in source.names}), name)
                    tick()
            for name, kind in kinds.items():
                if kind.startswith(("TH1", "TH2", "TH3", "TProfile")) and sink.trees:
                    sink.copy(name, file)
    except (ValueError, OSError, NotImplementedError, uproot.deserialization.DeserializationError) as e:
        raise BadQuery(f"{url}: the transformer's output cannot be read: {str(e)[:200]}") from e
    finally:
        data.close()
    if not trees:
        raise BadQuery(f"{url}: the transformer's output has no tree")
    return first


@contextlib.contextmanager
def _folder(settings: Container) -> Iterator[Path]:
    """A folder for one run, in the configured volume or among the temporary ones; old ones go."""
    base, mine = Path(settings.volume or tempfile.gettempdir()), f"doma-container-{socket.gethostname()}-"
    for left in base.glob(f"{mine}*"):
        pid = left.name.removeprefix(mine).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            remove(left)
    made = Path(tempfile.mkdtemp(prefix=f"{mine}{os.getpid()}-", dir=base))
    try:
        yield made
    finally:
        remove(made)
