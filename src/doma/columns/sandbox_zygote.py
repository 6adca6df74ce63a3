"""Inside the sandbox: a warm process that has done its imports and forks a fresh, sealed child per file.

It runs none of the users' code itself. Of each run it is told by one frame on its standard input, a socket,
with descriptors attached: one for the results, one for what the code prints, and some on which byte ranges
of the input are asked for. It answers with the exit status; a word in between kills the run, and the end of
the socket ends everything.

In namespaces of its own (``bubblewrap``) there are two more processes of ours: one waits outside of the new
process namespace, and the first one inside serves the input as ``http://127.0.0.1:PORT/NAME``, in a network
where nobody else is.
Without namespaces (``landlock``) the input is a file. See docs/security.md of the project.
"""

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import Any

from doma.columns import sandbox_harness, sandbox_seal
from doma.columns.sandbox_input import exactly, serve
from doma.columns.sandbox_view import WORK

WARM = (
    "numpy", "awkward", "uproot", "vector", "pyarrow", "pyarrow.parquet", "pyarrow.dataset", "fsspec",
    "fsspec.implementations.http",
    "encodings.idna", "fsspec.implementations.local", "aiohttp", "uproot.source.fsspec",
)  # fmt: skip

FDS = 16


def send(link: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """One frame: length, JSON; descriptors travel with the length."""
    body = json.dumps(message).encode()
    head = struct.pack("<I", len(body))
    if fds:
        socket.send_fds(link, [head], list(fds))
    else:
        link.sendall(head)
    link.sendall(body)


def receive(link: socket.socket, limit: int = 8 << 20) -> tuple[dict[str, Any] | None, list[int]]:
    """The next frame and its descriptors; None at the end. Raises ValueError: too long or no JSON object."""
    head, fds, _, _ = socket.recv_fds(link, 4, FDS)
    while 0 < len(head) < 4:
        head += link.recv(4 - len(head)) or b"\xff" * 4
    if not head:
        return None, fds
    (size,) = struct.unpack("<I", head[:4])
    if size > limit:
        raise ValueError(f"a frame of {size} bytes")
    message = json.loads(exactly(link, size))
    if not isinstance(message, dict):
        raise ValueError("a frame that is no object")  # noqa: TRY004 - hostile text, not a slip of ours
    return message, fds


def main() -> None:
    """Serve until the socket ends."""
    link = socket.socket(fileno=os.dup(0))
    os.set_inheritable(link.fileno(), False)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    sandbox_seal.dies_with_parent()
    sandbox_seal.dumpable(False)
    signal.set_wakeup_fd(-1)
    for name in WARM:
        with contextlib.suppress(ImportError):
            __import__(name)
    gc.freeze()  # or every child would copy all pages at its first collection
    send(link, {"ready": True})
    while True:
        order, fds = receive(link)
        if order is None:
            return
        if "kill" in order:  # it came when the run had ended by itself
            continue
        order["space"] = sandbox_seal.address_space()
        pid = os.fork()
        if not pid:
            code = 70
            try:
                link.close()
                code = _child(order, fds)
            except BaseException as e:  # noqa: BLE001 - nothing may return into the loop above
                _say(fds[0], f"{type(e).__name__}: {e}")
            finally:
                os._exit(code)
        for fd in fds:
            os.close(fd)
        send(link, {"status": _watch(link, pid)})


def _watch(link: socket.socket, pid: int) -> int:
    """Wait for the end of a run, or end it when a word or the end of the socket comes."""
    ended = os.pidfd_open(pid)
    try:
        readable, _, _ = select.select([ended, link.fileno()], [], [])
        if ended not in readable:
            receive(link)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(ended)
    return _code(status)


def _code(status: int) -> int:
    """An exit code as shells tell it: 128 and the signal for a killed process."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _say(result: int, problem: str) -> None:
    """Tell the server why the sandbox could not be built."""
    with contextlib.suppress(OSError):
        send(socket.socket(fileno=os.dup(result)), {"broken": problem[:500]})


def _child(order: dict[str, Any], fds: list[int]) -> int:
    """Seal this process and run the function, or, with namespaces, look after the one that does."""
    sandbox_seal.dies_with_parent()
    os.setsid()
    result, printed, *ranges = fds
    where: str = order["path"]
    if order["kind"] == "bubblewrap":
        listener = _namespaces(order)
        where = f"http://127.0.0.1:{listener.getsockname()[1]}/{order['name']}"
        if first := os.fork():  # this one stays outside: it can have no threads since it made the namespace
            os.close(result)
            os.close(printed)
            return _code(os.waitpid(first, 0)[1])
        sandbox_seal.dies_with_parent()
        if second := os.fork():
            os.close(result)
            os.close(printed)
            serve(listener, order["name"], order["size"], [socket.socket(fileno=fd) for fd in ranges])
            return _code(os.waitpid(second, 0)[1])
        listener.close()
        sandbox_seal.dies_with_parent()
    else:
        if not order["uid"]:  # the limit counts whatever else this user runs
            order["tasks"] += sandbox_seal.tasks_of(os.getuid())
        _become(order["uid"])
    for fd in ranges:
        os.close(fd)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    fds[:] = [os.dup2(result, 3)]
    os.closerange(4, 1 << 16)
    os.chdir(order["scratch"])
    os.environ.update(HOME=order["scratch"], TMPDIR=order["scratch"])
    _seal(order)
    return sandbox_harness.run(order["source"], where, socket.socket(fileno=fds[0]))


def _seal(order: dict[str, Any]) -> None:
    sandbox_seal.limit(
        order["space"] + order["memory"], order["seconds"], order["scratch_size"], tasks=order["tasks"]
    )
    if order["kind"] == "unsafe-single-user":
        return
    if order["kind"] == "landlock" or sandbox_seal.landlock_version():
        sandbox_seal.landlock(
            [*order["read"], *filter(None, [order["path"]])],
            [order["scratch"]],
            tcp=order["kind"] == "bubblewrap",
        )
    sandbox_seal.filter_calls(sockets=order["kind"] == "bubblewrap")


def _become(uid: int) -> None:
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        sandbox_seal.dies_with_parent()
    sandbox_seal.no_new_privileges()
    sandbox_seal.dumpable(False)


def _namespaces(order: dict[str, Any]) -> socket.socket:
    """New namespaces with a private work folder and a loopback; the socket on which the input is served."""
    uid, real, group = order["uid"], os.getuid(), os.getgid()
    flags = sandbox_seal.NEWNS | sandbox_seal.NEWPID | sandbox_seal.NEWNET | sandbox_seal.NEWIPC
    if uid:
        sandbox_seal.unshare(flags)
    else:
        sandbox_seal.dumpable(True)  # or the maps below belong to root
        sandbox_seal.unshare(flags | sandbox_seal.NEWUSER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{real} {real} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    owner, owner_group = (uid, uid) if uid else (real, group)
    size = f"size={order['scratch_size']},nr_inodes=4096,mode=0700,uid={owner},gid={owner_group}"
    sandbox_seal.mount_tmpfs(WORK, size)
    for place in ("/proc", "/dev/shm"):  # noqa: S108 - covered, not used
        sandbox_seal.mount_tmpfs(place, "size=4k,nr_inodes=2", read_only=True)
    listener = socket.socket()
    # struct ifreq: the name, then the flags IFF_UP | IFF_RUNNING.
    fcntl.ioctl(listener, 0x8914, struct.pack("16sh22x", b"lo", 0x41))
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    _become(uid)
    sandbox_seal.drop_capabilities()
    return listener


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
