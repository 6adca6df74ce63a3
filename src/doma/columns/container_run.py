"""Runners of experiment images: none (software of the machine, as with CVMFS), Apptainer, Kubernetes."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from doma.columns import container_guard
from doma.columns.container_guard import CANNOT
from doma.core.config import Container
from doma.core.errors import LimitExceeded, ServiceUnavailable
from doma.core.text import printed

SCRIPT = "transform_single_file.sh"
TAIL = 64 << 10
MOST_PRINTED = 256 << 20
"""Bytes that a program may print."""
TICK = 0.25
GUARD = str(Path(container_guard.__file__))
PASSED = {"PATH", "LANG", "LD_LIBRARY_PATH"}
"""What a program of ours sees of our environment: no secret."""


@dataclass(frozen=True, slots=True)
class Order:
    """One run of an image on one file."""

    image: str
    folder: Path
    """Holds all the others, and goes with them."""
    generated: Path
    input: Path
    output: Path
    """The file to be made, in a folder of its own."""
    format: str
    timeout: float

    def command(self, generated: str, inside: str, out: str) -> list[str]:
        """The command line of the contract, for the folders as the image sees them."""
        paths = f"{generated}/{SCRIPT}", f"{inside}/{self.input.name}", f"{out}/{self.output.name}"
        return ["bash", *paths, self.format]


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a run."""

    code: int
    log: str
    """What it printed, the last 64 KiB."""


class Runner(Protocol):
    """Runs images. A new one is a class and a case of :func:`runner_of`."""

    def run(self, order: Order, tick: Callable[[], None]) -> Ended:
        """Run an image to its end; ``tick`` is called some times a second.

        Raises:
            LimitExceeded: it took too long. ServiceUnavailable: images cannot be run now.
        """


def runner_of(settings: Container) -> Runner:
    """The configured runner."""
    match settings.runner:
        case "command":
            return CommandRunner()
        case "apptainer":
            return ApptainerRunner()
        case "kubernetes":
            from doma.columns.container_kubernetes import KubernetesRunner

            return KubernetesRunner(settings)


class CommandRunner:
    """No image: the code runs on this machine as this user, with a clean environment. It isolates nothing."""

    def run(self, order: Order, tick: Callable[[], None]) -> Ended:
        command = order.command(*map(str, (order.generated, order.input.parent, order.output.parent)))
        return run_process(command, order.output.parent, order.timeout, tick=tick)


class ApptainerRunner:
    """``apptainer exec``: no network, no home, no environment, nothing of this machine but three folders."""

    def run(self, order: Order, tick: Callable[[], None]) -> Ended:
        command = [
            "apptainer", "exec", "--containall", "--cleanenv", "--no-home", "--no-privs", "--net",
            "--network", "none", "--bind", f"{order.generated}:/generated:ro",
            "--bind", f"{order.input.parent}:/input:ro", "--bind", f"{order.output.parent}:/output:rw",
            "--pwd", "/output", order.image, *order.command("/generated", "/input", "/output"),
        ]  # fmt: skip
        return run_process(command, order.output.parent, order.timeout, tick=tick)


def run_process(
    command: list[str],
    folder: Path,
    timeout: float,
    given: bytes = b"",
    tick: Callable[[], None] | None = None,
) -> Ended:
    """Run a program of the site, to its end or the limit; with this process it ends, too.

    Raises:
        LimitExceeded: it took too long, or printed too much, and was killed. ServiceUnavailable: there is no
            such program.
    """
    environment = {**{k: v for k, v in os.environ.items() if k in PASSED}, "HOME": str(folder)}
    with tempfile.TemporaryFile() as kept, tempfile.NamedTemporaryFile() as told:
        told.write(given)
        told.flush()
        process = subprocess.Popen(  # noqa: S603 - the administrator's program, no shell
            [sys.executable, "-I", GUARD, told.name, *command],
            stdin=subprocess.PIPE, stdout=kept, stderr=subprocess.STDOUT, cwd=folder, env=environment,
        )  # fmt: skip

        def watch() -> None:
            if os.fstat(kept.fileno()).st_size > MOST_PRINTED:
                raise LimitExceeded(
                    f"{Path(command[0]).name}: printed more than {MOST_PRINTED >> 20} MiB; it was stopped"
                )
            if tick is not None:
                tick()

        try:
            code = _waited(process, time.monotonic() + timeout, watch)
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the guard ends what still runs
            process.wait()
        size = kept.seek(0, os.SEEK_END)
        kept.seek(max(0, size - TAIL))
        log = printed(kept.read(TAIL))
    name = Path(command[0]).name
    if code is None:
        raise LimitExceeded(f"{name}: not finished after {timeout:.0f} s; it was stopped", log=log)
    if code == CANNOT and "cannot be run" in log:
        raise ServiceUnavailable(f"{name}: cannot be run here; tell the administrator", log=log)
    return Ended(code, log)


def _waited(process: "subprocess.Popen[bytes]", deadline: float, tick: Callable[[], None]) -> int | None:
    while time.monotonic() < deadline:
        try:
            return process.wait(min(TICK, max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            tick()
    return None
