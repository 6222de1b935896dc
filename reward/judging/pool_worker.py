"""What runs in a judge's process: rows in, an answer for each out, as JSON lines on pipes of its own.

The judge is a function `judge(**row)`; an adapter may make it from the function named, and says whether it is one, or takes
many rows and returns a list of answers. What it prints goes to stderr where somebody reads that, else nowhere. It may not
start processes nor, unless that is allowed, open a socket, and its memory is limited.
"""

import importlib.util
import json
import os
import pkgutil
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rollout.tools.confine import die_with_parent, no_network, no_new_processes


def load(target: str) -> Callable:
    """The function of `package.module:name` or `file.py:name`. Raises ValueError, AttributeError or what the import raises."""
    source, _, name = target.rpartition(":")
    if not source.endswith(".py"):
        return pkgutil.resolve_name(target)
    spec = importlib.util.spec_from_file_location(Path(source).stem, source)
    if spec is None or spec.loader is None:
        raise ValueError(f"{source} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Beside the file lie what it imports; pickling and dataclasses look modules up by name.
    sys.path.insert(0, str(Path(source).resolve().parent))
    # Python would take the bytecode of the file as it was for one that is edited within the same second.
    sys.modules[spec.name], sys.dont_write_bytecode = module, True
    spec.loader.exec_module(module)
    return getattr(module, name)


def main() -> None:
    die_with_parent()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    setup = json.loads(requests.readline())
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    if not setup["printing"]:
        os.dup2(nowhere, 2)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (setup["memory_bytes"],) * 2)
    # Before the judge is loaded: what its import starts is bound by it too.
    confined = setup["network"] or no_network()
    try:
        judge, batched, wants = load(setup["target"]), False, {}
        if setup["adapter"]:
            judge, batched, wants = load(setup["adapter"])(judge)
    except BaseException as error:
        _answer(answers, {"error": _told(error)})
        return
    confined = no_new_processes() and confined
    _answer(answers, {"ready": True, "confined": confined, "batched": batched, "wants": wants})
    while line := requests.readline():
        rows = json.loads(line)
        for work in [lambda rows=rows: judge(rows)] if batched else [lambda row=row: judge(**row) for row in rows]:
            answer = _judged(work)
            _answer(answers, answer)
            if "leaving" in answer:
                return


def _judged(work: Callable[[], Any]) -> dict:
    """`value` and `seconds`, `error` (a traceback), or `killed` for a judge that needs more memory than it may have."""
    start = time.monotonic()
    try:
        value = work()
        json.dumps(value)
    except MemoryError:
        # What is left of its memory may not do for the next row.
        return {"killed": "the judge ran into its memory limit", "leaving": True}
    except BaseException as error:
        return {"error": _told(error)}
    return {"value": value, "seconds": time.monotonic() - start}


def _told(error: BaseException) -> str:
    """An exception, then its traceback: whoever has room for a line only shows what went wrong."""
    line = "".join(traceback.format_exception_only(error)).strip()
    return f"{line}\n{''.join(traceback.format_exception(error, limit=-20))}"


def _answer(answers, message: dict) -> None:
    answers.write(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
