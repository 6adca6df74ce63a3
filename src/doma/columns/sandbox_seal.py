"""What a process gives up before it runs somebody else's code: files, system calls, namespaces, resources.

Every function acts on the calling process, cannot be undone, and raises OSError when the kernel refuses: the
caller then ends, so that nothing runs half sealed. The C library is called directly; nothing is compiled.

Sources: landlock(7), seccomp(2), unshare(2), capabilities(7), setrlimit(2) of the Linux manual pages;
``asm/unistd_64.h`` and ``asm-generic/unistd.h`` for the numbers.
"""

import contextlib
import ctypes
import os
import platform
import resource
import struct
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)

_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 4, 22, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
SIGKILL = 9

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
CLONE_THREAD = 0x00010000
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Audit architecture and column of :data:`_REFUSED`."""
_LAST = 462
"""The newest call that was looked at; later ones do not exist for a sealed process."""

# New processes, other programs, signals, tracing, identities, mounts, modules, keys, memory that no limit
# counts, and what may be changed of other processes and files of one's own user without opening them.
# An allow-list was refused: a C library of next year would break the interpreter. -1: no such call.
_REFUSED = {
    "fork": (57, -1), "vfork": (58, -1), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "setsid": (112, 157), "setpgid": (109, 154),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setgroups": (116, 159), "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151),
    "setfsgid": (123, 152), "capset": (126, 91), "personality": (135, 92),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "swapon": (167, 224), "swapoff": (168, 225), "mknod": (133, -1),
    "mknodat": (259, 33), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "fanotify_init": (300, 262), "acct": (163, 89),
    "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58),
    "iopl": (172, -1), "ioperm": (173, -1), "modify_ldt": (154, -1), "uselib": (134, -1),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_setup": (206, 0),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "mq_open": (240, 180), "inotify_init": (253, -1), "inotify_init1": (294, 26),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "lchown": (94, -1), "fchown": (93, 55), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, -1), "utimes": (235, -1),
    "futimesat": (261, -1), "utimensat": (280, 88),
}  # fmt: skip
_SOCKET, _CLONE, _CLONE3, _PRLIMIT = (41, 198), (56, 220), 435, (302, 261)
# Having another process signalled when a descriptor becomes ready is a kill, too; older Landlock lets it be.
_OWNERS = {(72, 25): (8, 10, 15), (16, 29): (0x8901, 0x8902)}
"""``F_SETOWN, F_SETSIG, F_SETOWN_EX`` of fcntl, ``FIOSETOWN, SIOCSPGRP`` of ioctl."""
_EPERM, _ENOSYS, _INET = 1, 38, 2


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, *values: int) -> None:
    longs = [ctypes.c_ulong(v) for v in (*values, 0, 0, 0, 0)[:4]]
    _checked(_libc.prctl(option, *longs), f"prctl {option}")


def dies_with_parent() -> None:
    """Be killed when the parent ends; to be said again after every change of the user."""
    _prctl(_SET_PDEATHSIG, SIGKILL)


def dumpable(on: bool) -> None:
    """Whether other processes of the same user may look into this one."""
    _prctl(_SET_DUMPABLE, int(on))


def no_new_privileges() -> None:
    """No program started from here gains rights by its set-uid bit."""
    _prctl(_SET_NO_NEW_PRIVS, 1)


def unshare(flags: int) -> None:
    """Enter new namespaces."""
    _checked(_libc.unshare(flags), "unshare")


def mount_tmpfs(place: str, options: str, read_only: bool = False) -> None:
    """A new file system in memory; without devices, programs and set-uid files."""
    flags = _NOSUID | _NODEV | _NOEXEC | (_RDONLY if read_only else 0)
    args = (b"tmpfs", place.encode(), b"tmpfs", ctypes.c_ulong(flags), options.encode())
    _checked(_libc.mount(*args), f"mount {place}")


def drop_capabilities() -> None:
    """Empty all capability sets."""
    header = ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0))
    _checked(_libc.capset(header, ctypes.create_string_buffer(24)), "capset")


def address_space() -> int:
    """Bytes of address space that this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def tasks_of(user: int) -> int:
    """Threads that a user has on this machine now."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def limit(memory: int, seconds: int, file_size: int, files: int = 256, tasks: int = 64) -> None:
    """Resource limits, and no core files.

    Args:
        memory: Bytes of address space.
        seconds: Of processor time.
        file_size: Bytes of one file.
        files: Open at once.
        tasks: Threads of this user (in this user namespace).
    """
    wanted = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NPROC: tasks,
    }
    for which, value in wanted.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # the first is a signal with a name


# Landlock: the rights over files by the version of the interface that knows them.
_READ = 0b1100
"""Read files, list folders."""
_CHANGE = _READ | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8
"""And write, remove, make folders and plain files: no links, sockets, pipes or devices."""
_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights over files a version has; from 5 on all of them."""
_TRUNCATE, _FILE_ONLY = 1 << 14, 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14


def landlock_version() -> int:
    """Version of the kernel's Landlock interface; 0: there is none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def landlock(read: Sequence[str], change: Sequence[str] = (), tcp: bool = False) -> None:
    """Deny every file but those below these places, running programs, and reaching other processes.

    Args:
        read: What may be read.
        change: What may be written and removed, too.
        tcp: Whether TCP stays allowed: in a network namespace where nobody else is.

    TCP needs version 4, signals and abstract sockets version 6 of the interface: where those are missing,
    the system call filter does it alone.
    """
    version = landlock_version()
    if not version:
        raise OSError(_ENOSYS, "the kernel has no Landlock")
    handled = (1 << _KNOWN.get(version, 16)) - 1
    attributes = struct.pack(
        "<QQQ", handled, 0b11 if version >= 4 and not tcp else 0, 0b11 if version >= 6 else 0
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(
        _libc.syscall(_CREATE_RULESET, attributes[:size], ctypes.c_size_t(size), ctypes.c_uint32(0)),
        "landlock",
    )
    for places, rights in ((read, _READ), (change, _CHANGE | _TRUNCATE)):
        for place in places:
            try:
                fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
            except (FileNotFoundError, PermissionError):
                continue
            folder = os.path.isdir(place)
            rule = struct.pack("<Qi", rights & handled & (-1 if folder else _FILE_ONLY), fd)
            call = (_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0))
            _checked(_libc.syscall(*call), f"landlock {place}")
            os.close(fd)
    no_new_privileges()
    _checked(_libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "landlock")
    os.close(ruleset)


def filtered() -> bool:
    """Whether the system calls of this processor are known here."""
    return platform.machine() in MACHINES and struct.calcsize("P") == 8


def filter_calls(sockets: bool) -> None:
    """Refuse system calls, threads aside no new process among them.

    Args:
        sockets: Whether IPv4 sockets may be made: only where a network namespace holds nothing but loopback.
    """
    arch, column = MACHINES[platform.machine()]
    load, equal, above, has, give = 0x20, 0x15, 0x25, 0x45, 0x06
    kill, allow = 0x80000000, 0x7FFF0000

    def refuse(number: int) -> int:
        return 0x00050000 | number

    def only(call: int, test: int, value: int) -> list[tuple[int, int, int, int]]:
        """Allow a call by its first argument only, which is behind its number in what a filter sees."""
        return [(equal, 0, 4, call), (load, 0, 0, 16), (test, 0, 1, value), yes, no]

    def never(call: int, values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
        """Refuse a call with one of these second arguments."""
        refused = [line for value in values for line in ((equal, 0, 1, value), no)]
        return [(equal, 0, 2 + len(refused), call), (load, 0, 0, 24), *refused, yes]

    yes, no, missing = (give, 0, 0, allow), (give, 0, 0, refuse(_EPERM)), (give, 0, 0, refuse(_ENOSYS))
    # (code, jump if true, jump if false, value); what is seen: number at 0, arch at 4, arguments from 16.
    lines = [(load, 0, 0, 4), (equal, 1, 0, arch), (give, 0, 0, kill), (load, 0, 0, 0)]
    # The C library falls back from clone3, whose flags a filter cannot see, to clone.
    lines += [(above, 0, 1, _LAST), missing, (equal, 0, 1, _CLONE3), missing]
    lines += only(_CLONE[column], has, CLONE_THREAD)
    lines += only(_SOCKET[column], equal, _INET if sockets else 0xFFFF)
    lines += only(_PRLIMIT[column], equal, 0)  # its own limits
    for call, values in _OWNERS.items():
        lines += never(call[column], values)
    for numbers in _REFUSED.values():
        if numbers[column] >= 0:
            lines += [(equal, 0, 1, numbers[column]), no]
    lines.append(yes)
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(lines), ctypes.addressof(code)))
    no_new_privileges()
    _prctl(_SET_SECCOMP, 2, ctypes.addressof(program))
