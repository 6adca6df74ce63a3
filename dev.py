#!/usr/bin/env python3
"""One door to the project's own work: ``python3 dev.py demo|test|check|faults|clients|bench|lock|setup``.

Needs Python 3.11 or later and nothing else: it makes the environment ``.venv`` from the pinned, hashed
``constraints.txt`` and then runs the command inside it. Further arguments are passed on.
"""

from __future__ import annotations  # so that an older Python gets as far as being refused

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
HOME = ROOT / ".venv"
BIN = HOME / "bin"
PINS = ROOT / "constraints.txt"
BESIDE = ("reference", "rucio")
"""Environments of other people's programs, which need other packages: ``<name>.in`` and ``.txt``."""


def run(*command: str | Path) -> int:
    """Run a program in the checkout; its exit code."""
    return subprocess.run([str(c) for c in command], cwd=ROOT, check=False).returncode


def must(*command: str | Path) -> None:
    """Run a program and stop here if it fails."""
    if code := run(*command):
        print(f"dev.py: {' '.join(map(str, command))} failed with exit code {code}", file=sys.stderr)
        raise SystemExit(code)


def setup() -> None:
    """Make ``.venv`` with everything pinned; a second call costs nothing."""
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs this may have an older one
        raise SystemExit(f"doma needs Python 3.11 or later, this is {sys.version.split()[0]}")
    state = hashlib.sha256(PINS.read_bytes() + (ROOT / "pyproject.toml").read_bytes())
    state.update(f"{sys.version_info[:2]} {ROOT}".encode())
    stamp = HOME / "doma.stamp"
    if stamp.exists() and stamp.read_text() == state.hexdigest():
        return
    print("dev.py: making .venv (about a minute and a half the first time)", file=sys.stderr, flush=True)
    if not (BIN / "python").exists():
        shutil.rmtree(HOME, ignore_errors=True)
        venv.create(HOME, with_pip=True)
    pip = (BIN / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps")
    # The pin file lists every package of every extra: pip has nothing to resolve. Only wheels, never a build.
    must(*pip, "--require-hashes", "--only-binary", ":all:", "-r", PINS)
    must(*pip, "--no-build-isolation", "--editable", ROOT)
    stamp.write_text(state.hexdigest())


def lock(args: Sequence[str]) -> int:
    """Refresh the pins: newest versions that pyproject.toml allows, for all platforms, with hashes."""
    tool = HOME / "lock"
    if not (tool / "bin" / "uv").exists():
        venv.create(tool, with_pip=True)
        must(tool / "bin" / "pip", "install", "--quiet", "--only-binary", ":all:", "uv")
    options = "--universal --upgrade --generate-hashes --no-emit-index-url --no-annotate"
    options += " --no-header --python-version 3.11 --quiet"
    command: tuple[str | Path, ...] = (tool / "bin" / "uv", "pip", "compile", *options.split(), *args)
    must(*command, "pyproject.toml", "--extra", "test", "--output-file", PINS)
    for name in BESIDE:
        # docopt has no wheel; what Rucio uses of it, no test does.
        without = ("--no-emit-package", "docopt")
        must(*command, *without, pins(name).with_suffix(".in"), "--output-file", pins(name))
    return 0


def pins(name: str) -> Path:
    """The file of one of :data:`BESIDE`."""
    return ROOT / "tests" / "clients" / f"{name}.txt"


def beside(name: str) -> None:
    """Make ``.venv/<name>``."""
    place, state = HOME / name, hashlib.sha256(pins(name).read_bytes()).hexdigest()
    stamp = place / "doma.stamp"
    if stamp.exists() and stamp.read_text() == state:
        return
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, with_pip=True)
    pip = (place / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    must(*pip, "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", pins(name))
    stamp.write_text(state)


def check(args: Sequence[str]) -> int:
    """Format, lint, types, import contracts, docstring examples, the generated configuration table."""
    codes = [
        run(BIN / "ruff", "format", "--check", "--quiet", "src", "tests", "docs", "dev.py"),
        run(BIN / "ruff", "check", "--quiet", "src", "tests", "docs", "dev.py"),
        run(BIN / "mypy", *args),
        run(BIN / "lint-imports"),
        run(BIN / "python", "-m", "pytest", "-q", "--no-header", "src"),
        run(BIN / "python", "docs/generate.py", "--check"),
    ]
    return max(map(abs, codes))


def suite(args: Sequence[str]) -> int:
    """The default suite, in two halves at once: each waits about half of its time. With paths: just these."""
    pytest = (str(BIN / "python"), "-m", "pytest", "-q", "-m", "not fault")
    if not all(arg.startswith("-") for arg in args):
        return run(*pytest[:-2], *args)
    with tempfile.TemporaryFile() as said:
        # By processor time; columns come first, for what they wait for is other processes' work.
        store = "tests/contract/store"
        others = [
            *pytest,
            "tests/e2e/columns",
            "tests/unit",
            "tests/contract",
            "src",
            f"--ignore={store}",
            *args,
        ]
        beside = subprocess.Popen(others, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        try:
            first = run(*pytest, "tests/e2e", store, "--ignore=tests/e2e/columns", *args)
        finally:
            second = beside.wait()
        said.seek(0)
        shutil.copyfileobj(said, sys.stdout.buffer)
    return max(abs(first), abs(second))


def main(argv: Sequence[str]) -> int:
    """Set up, then do what the first argument says."""
    verb, args = (argv[0], list(argv[1:])) if argv else ("", [])
    if verb not in {"setup", "demo", "test", "check", "faults", "clients", "bench", "lock"}:
        print(__doc__, file=sys.stderr)
        return 64
    if verb == "lock":
        return lock(args)
    setup()
    if verb == "demo":
        return run(BIN / "doma", "demo", *args)
    if verb == "check":
        return check(args)
    if verb == "bench":
        programs = sorted((ROOT / "tests" / "bench").rglob("bench_*.py"))
        return max(run(BIN / "python", program, *args) for program in programs)
    if verb == "test":
        return suite(args)
    pytest = (BIN / "python", "-m", "pytest", "-q")
    if verb == "clients":
        for name in BESIDE:
            beside(name)
        return run(*pytest, "tests/clients", *args)
    if verb == "faults":
        # Those that share their fixtures with other tests stand beside them, marked.
        marked = run(*pytest, "-m", "fault", "tests/e2e") if not args else 0
        return max(run(*pytest, "tests/faults", *args), marked)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUTF8", "1")
    sys.exit(main(sys.argv[1:]))
