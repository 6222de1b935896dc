"""What runs beside a rollout worker with `rollout.environment`: loads the user's function, and forks for every output.

Started as a script: argv[1] is `file.py:name`, argv[2] the descriptor of the worker's socket, on which come numbers of
processes to end, or 0 with the socket of a new output's environment. On that one the new process says its number; then
come lines of JSON: {"make": row}, {"step": text}, {"rewards": true}; each is answered with {"value": ...} or {"error": text}.
"""

import ctypes
import importlib.util
import json
import math
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[2]))
    try:
        make = _load(sys.argv[1])
    except BaseException as error:
        control.sendall(json.dumps({"error": _told(error)}).encode() + b"\n")
        return
    control.sendall(b'{"ready": true}\n')
    _serve(control, make)


def _serve(control: socket.socket, make: Callable[..., Any]) -> None:
    """Until the worker is gone."""
    children: set[int] = set()
    while True:
        data, handles, _, _ = socket.recv_fds(control, 1 << 16, 64)
        # Numbers are not used again before their processes are waited for, so none is ended for another.
        for pid in [pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]]:
            children.discard(pid)
        for line in data.split():
            if int(line) in children:
                os.killpg(int(line), signal.SIGKILL)
        for handle in handles:
            pid = os.fork()
            if not pid:
                control.close()
                for other in set(handles) - {handle}:
                    os.close(other)
                _one(socket.socket(fileno=handle), make)
                os._exit(0)
            children.add(pid)
            os.close(handle)
        if not data:
            for pid in children:
                os.killpg(pid, signal.SIGKILL)
            return


def _one(end: socket.socket, make: Callable[..., Any]) -> None:
    """One output's environment, in a process of its own."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    environment: Any = None
    with end.makefile("rw", encoding="utf-8") as lines:
        lines.write(f"{os.getpid()}\n")
        lines.flush()
        for line in lines:
            (what, given), answer = next(iter(json.loads(line).items())), {}
            try:
                if what == "make":
                    random.seed(given.pop("seed"))
                    environment, answer["value"] = make(given["question"], given["gold"], given["columns"]), None
                else:
                    answer["value"] = _reply(environment.step(given)) if what == "step" else _rewards(environment.rewards())
            except BaseException as error:
                answer = {"error": _told(error)}
            lines.write(json.dumps(answer) + "\n")
            lines.flush()


def _reply(said: object) -> str | None:
    if said is not None and not isinstance(said, str):
        raise TypeError(f"step returned {said!r:.80}; expected the text that the policy is told, or None at the end")
    return said


def _rewards(given: Any) -> dict[str, float]:
    parts = given if isinstance(given, dict) else {"score": given}
    for name, part in parts.items():
        if not isinstance(name, str) or not isinstance(part, int | float) or not math.isfinite(part):
            raise TypeError(f"rewards returned {given!r:.80}; expected a finite number, or a dict of them by name")
    if not parts:
        raise TypeError("rewards returned no part; expected one or more")
    return {name: float(part) for name, part in parts.items()}


def _load(target: str) -> Callable[..., Any]:
    source, _, name = target.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(source).stem, source)
    if spec is None or spec.loader is None:
        raise ValueError(f"{source} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(source).resolve().parent))  # beside the file lies what it imports
    # Python would take the bytecode of the file as it was for one that is edited within the same second.
    sys.modules[spec.name], sys.dont_write_bytecode = module, True
    spec.loader.exec_module(module)
    return getattr(module, name)


def _told(error: BaseException) -> str:
    line = "".join(traceback.format_exception_only(error)).strip()
    return f"{line}\n{''.join(traceback.format_exception(error, limit=-20))}"


if __name__ == "__main__":
    main()
