"""Threads for what needs no interpreter: copying, hashing and adding up."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

MOST_THREADS = 8


def on_all_cores() -> ThreadPoolExecutor:
    """Threads on all cores that this process has. Those of an engine's main thread would otherwise share the one it is bound
    to."""
    cores: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended since
            cores |= os.sched_getaffinity(int(thread))
    return ThreadPoolExecutor(min(len(cores), MOST_THREADS), initializer=os.sched_setaffinity, initargs=(0, cores))
