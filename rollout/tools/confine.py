"""Limits that a process puts on itself before it runs code that is not to be trusted: seccomp and Landlock, on Linux.

None of them needs root, none can be undone, and children inherit them. Each returns whether the kernel took it, so that the
caller decides what a missing one means.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENT_AT = 0, 4, 16
_CLONE_THREAD = 0x10000
_X32 = 0x40000000
"""Set in the numbers of x86-64's second table of calls, which reaches the same functions and says the same architecture."""
_CAPABILITY_VERSION_3 = 0x20080522
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SIGNALS = {
    "x86_64": {"kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297},
    "aarch64": {"kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240},
}
_OTHERS = {
    "x86_64": {
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "setpriority": 141, "sched_setparam": 142,
        "sched_setscheduler": 144, "sched_setaffinity": 203, "ioprio_set": 251, "migrate_pages": 256, "move_pages": 279,
        "sched_setattr": 314, "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "mq_open": 240, "memfd_create": 319,
        "add_key": 248, "request_key": 249, "keyctl": 250, "perf_event_open": 298, "bpf": 321, "userfaultfd": 323,
    },
    "aarch64": {
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "setpriority": 140, "sched_setparam": 118,
        "sched_setscheduler": 119, "sched_setaffinity": 122, "ioprio_set": 30, "migrate_pages": 238, "move_pages": 239,
        "sched_setattr": 274, "shmget": 194, "shmat": 196, "semget": 190, "msgget": 186, "mq_open": 180, "memfd_create": 279,
        "add_key": 217, "request_key": 218, "keyctl": 219, "perf_event_open": 241, "bpf": 280, "userfaultfd": 282,
    },
}  # fmt: skip
"""Calls that reach into other processes, or hold memory that no limit of a process counts."""
_EVERYWHERE = {"pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438}
_METADATA = {
    "x86_64": {
        "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "utime": 132, "utimes": 235, "fchownat": 260,
        "futimesat": 261, "fchmodat": 268, "utimensat": 280, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
        "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466,
    },
    "aarch64": {
        "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "utimensat": 88, "setxattr": 5, "lsetxattr": 6,
        "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16, "fchmodat2": 452, "setxattrat": 463,
        "removexattrat": 466,
    },
}  # fmt: skip
"""Calls that Landlock does not look at."""
_CALLS = {
    "x86_64": {"fork": 57, "vfork": 58, "clone": 56, "clone3": 435, "socket": 41, "fcntl": 72, "ioctl": 16, "prlimit64": 302},
    "aarch64": {"clone": 220, "clone3": 435, "socket": 198, "fcntl": 25, "ioctl": 29, "prlimit64": 261},
}
"""Numbers of the system calls that are refused wholly or in part; arm64 has neither fork nor vfork."""
_OWNER_COMMANDS = {"fcntl": (8, 10, 15), "ioctl": (0x8901, 0x8902)}
"""F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP: whom the kernel signals when a descriptor is ready."""

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ = 1 << 0 | 1 << 2 | 1 << 3
"""Execute, read a file, read a directory."""
_ACCESS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many of the access rights to files each version of Landlock knows."""
_SCOPED = 1 << 0 | 1 << 1
"""Abstract sockets, signals."""
_FILE_ONLY = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
"""Rights that a path which is no directory can have: execute, write, read, truncate, device calls."""


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that started it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def no_new_processes() -> bool:
    """Refuse fork, vfork, and clone but for threads (EPERM)."""
    if not _known():
        return False
    calls = _CALLS[platform.machine()]
    # clone3's flags lie in memory, where a filter cannot look; without it the C library takes clone.
    rules = _refused(_CALLS, "fork", "vfork") + _refuse(calls["clone3"], errno.ENOSYS)
    thread = [
        (_EQUAL, 0, 4, calls["clone"]),
        (_LOAD, 0, 0, _ARGUMENT_AT),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return _install(rules + thread)


def no_network() -> bool:
    """Refuse every new socket (EPERM); pairs of connected ones stay possible."""
    return _known() and _install(_refused(_CALLS, "socket"))


def no_interference() -> bool:
    """Refuse whatever reaches into a process, its own included (EPERM): signals, tracing, limits, priorities; memory that
    outlives a process; and io_uring, which goes past filters."""
    if not _known():
        return False
    calls = _CALLS[platform.machine()]
    rules = _refused(_SIGNALS) + _refused(_OTHERS) + [step for n in _EVERYWHERE.values() for step in _refuse(n, errno.EPERM)]
    for name, commands in _OWNER_COMMANDS.items():
        rules += _refuse_when(calls[name], 1, commands)
    own = [
        (_EQUAL, 0, 4, calls["prlimit64"]),
        (_LOAD, 0, 0, _ARGUMENT_AT),
        (_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return _install(rules + own)


def no_metadata() -> bool:
    """Refuse to change owners, modes, times and attributes of files (EPERM)."""
    return _known() and _install(_refused(_METADATA))


def _known() -> bool:
    return platform.machine() in _CALLS


def no_capabilities() -> bool:
    """Give up what root may do beyond an owner's rights."""
    header, none = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)), ctypes.create_string_buffer(24)
    return _libc.capset(header, none) == 0


def files(readable: Iterable[Path], writable: Iterable[Path]) -> bool:
    """Refuse every file but those below `readable` (to read and execute) and `writable` (to do anything with)."""
    abi = _libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if abi < 1:
        return False
    handled = (1 << _ACCESS_BY_ABI.get(abi, 16)) - 1
    # From version 6 on, a process is also kept from signalling any outside.
    asked = struct.pack("=QQQ", handled, 0, _SCOPED) if abi >= 6 else struct.pack("=Q", handled)
    ruleset = _libc.syscall(_LANDLOCK_CREATE, ctypes.create_string_buffer(asked), len(asked), 0)
    if ruleset < 0:
        return False
    try:
        allowed = [*((path, _READ) for path in readable), *((path, handled) for path in writable)]
        for path, rights in allowed:
            if path.exists() and not _allow(ruleset, path, rights & handled):
                return False
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return _libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> bool:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights if path.is_dir() else rights & _FILE_ONLY, opened))
        return _libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0) == 0
    finally:
        os.close(opened)


def _refused(table: dict[str, dict[str, int]], *names: str) -> list[tuple[int, int, int, int]]:
    calls = table[platform.machine()]
    return [step for name in names or calls if name in calls for step in _refuse(calls[name], errno.EPERM)]


def _refuse_when(number: int, argument: int, values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Refuse a call whose argument has one of the values; allow it otherwise."""
    count = len(values)
    return [
        (_EQUAL, 0, count + 3, number),
        (_LOAD, 0, 0, _ARGUMENT_AT + 8 * argument),
        *((_EQUAL, count - index, 0, value) for index, value in enumerate(values)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]


def _refuse(number: int, error: int) -> list[tuple[int, int, int, int]]:
    return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | error)]


def _install(rules: list[tuple[int, int, int, int]]) -> bool:
    """A filter: calls of another architecture or table are refused, then the rules in turn, then all is allowed."""
    begin = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()]),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_ANY_BIT, 0, 1, _X32),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    steps = [*begin, *rules, (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(program), 0, 0) == 0
