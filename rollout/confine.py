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
_CAPABILITY_VERSION_3 = 0x20080522
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CALLS = {
    "x86_64": {
        "fork": 57, "vfork": 58, "clone": 56, "clone3": 435, "socket": 41, "kill": 62, "tkill": 200, "tgkill": 234,
        "pidfd_send_signal": 424, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "io_uring_setup": 425,
    },
    "aarch64": {
        "clone": 220, "clone3": 435, "socket": 198, "kill": 129, "tkill": 130, "tgkill": 131,
        "pidfd_send_signal": 424, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "io_uring_setup": 425,
    },
}  # fmt: skip
"""Numbers of the system calls that are refused; arm64 has neither fork nor vfork."""

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ = 1 << 0 | 1 << 2 | 1 << 3
"""Execute, read a file, read a directory."""
_ACCESS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many of the access rights to files each version of Landlock knows."""
_FILE_ONLY = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
"""Rights that a path which is no directory can have: execute, write, read, truncate, device calls."""


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that started it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def no_new_processes() -> bool:
    """Refuse fork, vfork, and clone but for threads (EPERM)."""
    calls = _CALLS.get(platform.machine(), {})
    if not calls:
        return False
    # clone3's flags lie in memory, where a filter cannot look; without it the C library takes clone.
    rules = _refused("fork", "vfork") + _refuse(calls["clone3"], errno.ENOSYS)
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
    return platform.machine() in _CALLS and _install(_refused("socket"))


def no_interference() -> bool:
    """Refuse signals to, and reading and tracing of, any process, its own included (EPERM), and io_uring, which goes past
    filters."""
    names = (
        "kill",
        "tkill",
        "tgkill",
        "pidfd_send_signal",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "io_uring_setup",
    )
    return platform.machine() in _CALLS and _install(_refused(*names))


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
    ruleset = _libc.syscall(_LANDLOCK_CREATE, ctypes.byref(ctypes.c_uint64(handled)), 8, 0)
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
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights if path.is_dir() else rights & _FILE_ONLY, place))
        return _libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0) == 0
    finally:
        os.close(place)


def _refused(*names: str) -> list[tuple[int, int, int, int]]:
    calls = _CALLS[platform.machine()]
    return [step for name in names if name in calls for step in _refuse(calls[name], errno.EPERM)]


def _refuse(number: int, error: int) -> list[tuple[int, int, int, int]]:
    return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | error)]


def _install(rules: list[tuple[int, int, int, int]]) -> bool:
    """A filter: calls of another architecture are refused, then the rules in turn, then all is allowed."""
    begin = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()]),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    steps = [*begin, *rules, (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(program), 0, 0) == 0
