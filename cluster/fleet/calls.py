"""Calls of actors: typed by the method that they name, awaited with a deadline, and with errors in words."""

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Concatenate, ParamSpec, TypeVar, overload

import ray
import ray.exceptions
from ray import ObjectRef
from ray.actor import ActorHandle

from rollout.engine_log import COLOUR

A = TypeVar("A")
R = TypeVar("R")
P = ParamSpec("P")
log = logging.getLogger("cohort")
LATE = "no answer within"
"""How an error says that a deadline passed, an engine's or an actor's."""


class RoleFailed(RuntimeError):
    """A role failed in a way that the run cannot outlive; names the actor and its error."""


@overload
def ask(
    actor: ActorHandle[A], method: Callable[Concatenate[A, P], Awaitable[R]], name: str = ""
) -> Callable[P, ObjectRef[R]]: ...
@overload
def ask(actor: ActorHandle[A], method: Callable[Concatenate[A, P], R], name: str = "") -> Callable[P, ObjectRef[R]]: ...
def ask(actor, method, name=""):
    """The actor's method: it takes the method's arguments and returns at once. `name` is the call's in the dashboard."""
    return getattr(actor, method.__name__).options(name=name or method.__name__).remote


def gather(
    pending: Mapping[int, ObjectRef[R]], deadline_s: float, *, grace_s: float | None = None, what: str = "a call"
) -> tuple[dict[int, R], dict[int, str]]:
    """(answers, errors) by slot. What has not come by the deadline is an error, of which the log says that `what` waited for
    which slots since when; nothing is awaited longer.

    With `grace_s`, the first error shortens the wait for the others to that many seconds: ranks of one group cannot go on
    without each other.
    """
    answers: dict[int, R] = {}
    errors: dict[int, str] = {}
    keys = {ref: key for key, ref in pending.items()}
    until, began = time.monotonic() + deadline_s, time.strftime("%H:%M:%S")
    while keys:
        ready, _ = ray.wait(list(keys), num_returns=1, timeout=max(0.0, until - time.monotonic()))
        if not ready:
            log.error("%s waits since %s, in vain, for %s", what, began, ", ".join(map(str, sorted(keys.values()))))
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


def all_answers(pending: Mapping[int, ObjectRef[R]], role: str, deadline_s: float, name: str = "") -> dict[int, R]:
    """The answers by slot; `name` is the calls'. Raises RoleFailed where one does not come."""
    answers, errors = gather(pending, deadline_s, grace_s=10, what=f"{role}: {name}")
    if errors:
        # The rank that failed by itself is told apart from those that only waited for it.
        slot = min(errors, key=lambda s: (LATE in errors[s], s))
        raise RoleFailed(f"{role}-{slot}: {errors[slot]}")
    return answers
