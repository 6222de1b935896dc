"""Judges for the pool's tests: as hostile as answers and reward functions get."""

import ctypes
import os
import sys
import threading
import time


def judge(do: str, value=None):
    if do == "hang":
        time.sleep(1000)
    if do == "power":
        return len(str(9 ** (9**9)))
    if do == "memory":
        return len(bytearray(10 * 2**30))
    if do == "recursion":
        return judge("recursion")
    if do == "fork":
        while True:
            os.fork()
    if do == "segfault":
        ctypes.string_at(0)
    if do == "exit":
        sys.exit(0)
    if do == "leave":
        os._exit(3)
    if do == "flood":
        for _ in range(2000):
            sys.stdout.write("x" * 10_000)
            os.write(1, b"y" * 10_000)
    if do == "flood the answer":
        return "x" * 10_000_000
    if do == "raise":
        raise KeyError(value)
    if do == "object":
        return object()
    if do == "thread":
        found = []
        thread = threading.Thread(target=found.append, args=(value,))
        thread.start()
        thread.join()
        return found[0]
    return value


def many(function):
    """An adapter: the function takes many rows at once."""
    return function, True, {}


def batch(rows):
    if any(row["do"] == "short" for row in rows):
        return [row["value"] for row in rows[1:]]
    return [judge(**row) for row in rows]
