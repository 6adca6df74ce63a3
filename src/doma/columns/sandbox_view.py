"""What of this machine a sandboxed function can see, and the command that starts its warm process."""

import os
import shutil
import sys
from pathlib import Path

SOURCES = Path(__file__).parents[2]
WORK = "/.work"
"""The run's own folder in a view; a name that no interpreter lies below."""
SYSTEM = (
    "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime",
    "/etc/alternatives",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
CAPABILITIES = ("SYS_ADMIN", "SETUID", "SETGID", "NET_ADMIN", "KILL")
"""What the warm process keeps where the server is root; no run has any."""


def _paths() -> list[str]:
    """Folders of installed packages on this interpreter's path, and our own sources."""
    installed = [
        p for p in sys.path if Path(p).name in {"site-packages", "dist-packages"} and Path(p).is_dir()
    ]
    return list(dict.fromkeys([str(SOURCES), *installed]))


def places() -> list[str]:
    """Files and folders that may be read: system libraries, interpreter, packages, our code."""
    own: list[str] = []
    for prefix in (sys.prefix, sys.base_prefix):
        wide = prefix in {"/", "/usr"}
        own += [] if wide else [f"{prefix}/{n}" for n in ("lib", "lib64", "bin", "pyvenv.cfg")]
    real = str(Path(sys.executable).resolve())
    packages = [p for p in _paths() if p != str(SOURCES)]
    wanted = [*SYSTEM, *DEVICES, *own, sys.executable, real, *packages, str(SOURCES / "doma")]
    there = sorted({p for p in wanted if os.path.lexists(p)})
    return [p for p in there if not any(p != q and Path(p).is_relative_to(q) for q in there)]


def environment() -> dict[str, str]:
    """The whole environment of the warm process: nothing of ours."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONPATH": ":".join(_paths()),
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **one,
    }


def command(kind: str) -> list[str]:
    """The command line of the warm process."""
    python = [sys.executable, "-m", "doma.columns.sandbox_zygote"]
    if kind != "bubblewrap":
        return python
    line = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session"]
    line += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    if os.geteuid() == 0:
        line += ["--cap-drop", "ALL"]
        for name in CAPABILITIES:
            line += ["--cap-add", f"CAP_{name}"]
    else:
        line += ["--unshare-user"]
    line += ["--proc", "/proc", "--dev", "/dev", "--dir", WORK, "--symlink", WORK.strip("/"), "/tmp"]  # noqa: S108 - the sandbox's
    shown = [p for p in places() if p not in DEVICES]
    # Folders on the way to what is shown; bubblewrap alone would leave some of them to their owner.
    above = {str(q) for p in shown for q in Path(p).parents if str(q) != "/"}
    for folder in sorted(above):
        line += ["--perms", "0755", "--dir", folder]
    for place in shown:
        path = Path(place)
        if path.is_symlink() and place in SYSTEM:
            line += ["--symlink", str(path.readlink()), place]
        else:
            line += ["--ro-bind", place, place]
    return [*line, "--remount-ro", "/", "--chdir", "/", "--", *python]
