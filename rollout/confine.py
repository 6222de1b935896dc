"""Limits that a process puts on itself before it runs code that is not to be trusted: seccomp and Landlock, on Linux.

Neither needs root, neither can be undone, and children inherit both. Each returns whether the kernel took it, so that the
caller decides what a missing one means.

`no_new_processes` refuses fork, vfork and clone other than threads (EPERM). `no_network` refuses sockets of every family but
Unix ones (EACCES), and with them the namespaces of abstract Unix sockets stay reachable. `files` leaves the whole file
system out of reach except the paths named.
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
_AF_UNIX = 1
# Architecture token, then the numbers of fork, vfork (None where there is no such call), clone, clone3 and socket.
_CALLS = {"x86_64": (0xC000003E, 57, 58, 56, 435, 41), "aarch64": (0xC00000B7, None, None, 220, 435, 198)}

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
    """Refuse to start processes; threads are allowed."""
    calls = _CALLS.get(platform.machine())
    if calls is None:
        return False
    arch, fork, vfork, clone, clone3, _ = calls
    rules = [_refuse(number, errno.EPERM) for number in (fork, vfork) if number is not None]
    # Its flags lie in memory, where a filter cannot look; without it the C library takes clone.
    rules.append(_refuse(clone3, errno.ENOSYS))
    thread = [
        (_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, _ARGUMENT_AT),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return _install(arch, [*(step for rule in rules for step in rule), *thread])


def no_network() -> bool:
    """Refuse sockets of every family but Unix."""
    calls = _CALLS.get(platform.machine())
    if calls is None:
        return False
    arch, *_, socket = calls
    family = [
        (_EQUAL, 0, 4, socket),
        (_LOAD, 0, 0, _ARGUMENT_AT),
        (_EQUAL, 1, 0, _AF_UNIX),
        (_RETURN, 0, 0, _ERRNO | errno.EACCES),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return _install(arch, family)


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


def _refuse(number: int, error: int) -> list[tuple[int, int, int, int]]:
    return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | error)]


def _install(arch: int, rules: list[tuple[int, int, int, int]]) -> bool:
    """A filter: calls of another architecture are refused, then the rules in turn, then all is allowed."""
    begin = [(_LOAD, 0, 0, _ARCH_AT), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_LOAD, 0, 0, _NUMBER_AT)]
    steps = [*begin, *rules, (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(program), 0, 0) == 0
