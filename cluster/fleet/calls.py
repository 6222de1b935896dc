"""Answers of actors: awaited with a deadline, and errors in words."""

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray

from rollout.engine_log import COLOUR

LATE = "no answer within"
"""How an error says that a deadline passed, an engine's or an actor's."""


class RoleFailed(RuntimeError):
    """A role failed in a way that the run cannot outlive; names the actor and its error."""


def gather(pending: dict[Any, ray.ObjectRef], deadline_s: float, *, grace_s: float | None = None):
    """(answers, errors) by key. What has not come by the deadline is an error; nothing is awaited longer.

    With `grace_s`, the first error shortens the wait for the others to that many seconds: ranks of one group cannot go on
    without each other.
    """
    answers: dict[Any, Any] = {}
    errors: dict[Any, str] = {}
    keys = {ref: key for key, ref in pending.items()}
    until = time.monotonic() + deadline_s
    while keys:
        ready, _ = ray.wait(list(keys), num_returns=1, timeout=max(0.0, until - time.monotonic()))
        if not ready:
            return answers, errors | dict.fromkeys(keys.values(), f"{LATE} {deadline_s:g} s")
        key = keys.pop(ready[0])
        try:
            answers[key] = ray.get(ready[0], timeout=60)
        except ray.exceptions.RayError as error:
            errors[key] = in_one_line(error)
            if grace_s is not None:
                until = min(until, time.monotonic() + grace_s)
    return answers, errors


def in_one_line(error: ray.exceptions.RayError) -> str:
    """What an actor raised, without Ray's wrapping; for an exception that is none of ours also where it was raised."""
    cause = getattr(error, "cause", None) or error
    words = " ".join(COLOUR.sub("", str(cause)).split())
    text = f"{type(cause).__name__}: {words if len(words) < 800 else words[:400] + ' ... ' + words[-400:]}"
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', COLOUR.sub("", str(error)))
    ours = type(cause).__module__.partition(".")[0] in ("rollout", "reward", "learner", "cluster")
    return text if ours or not frames else f"{text} ({frames[-1][0]}:{frames[-1][1]} in {frames[-1][2]})"


def all_answers(calls: dict[int, Any], role: str, deadline_s: float) -> dict[int, Any]:
    """The answers by slot. Raises RoleFailed where one does not come."""
    answers, errors = gather(calls, deadline_s, grace_s=10)
    if errors:
        # The rank that failed by itself is told apart from those that only waited for it.
        slot = min(errors, key=lambda s: (LATE in errors[s], s))
        raise RoleFailed(f"{role}-{slot}: {errors[slot]}")
    return answers


def asking(handles: Mapping[int, Any], deadline_s: float):
    """Function of (method, slots, *arguments): asks these actors, and gives (answers, errors) by slot within the deadline."""

    def ask(method: str, slots: Iterable[int], *arguments: Any) -> tuple[dict[int, Any], dict[int, str]]:
        named = {slot: getattr(handles[slot], method).options(name=f"{method} of slot {slot}") for slot in slots}
        answers, errors = gather({slot: call.remote(*arguments) for slot, call in named.items()}, deadline_s)
        return answers, {slot: f"{method}: {error}" for slot, error in errors.items()}

    return ask
