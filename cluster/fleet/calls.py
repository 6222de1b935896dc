"""Calls of actors: typed by the method that they name, awaited with a deadline, and with errors in words."""

import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Concatenate, Generic, ParamSpec, TypeVar, overload

import ray
import ray.exceptions
from ray import ObjectRef
from ray.actor import ActorHandle

from cluster.fibers import HUB, LATE
from rollout.engine_log import COLOUR

A = TypeVar("A")
R = TypeVar("R")
Q = TypeVar("Q")
P = ParamSpec("P")
log = logging.getLogger("cohort")
GROUP_GRACE_S = 5.0
"""For the others of a group in which one failed."""
_OF_ANOTHER = re.compile(r"gloo|nccl|connection (?:closed|reset)|Timed out", re.IGNORECASE)
"""What a rank says when another one of its collective is gone."""


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


class Stream(Generic[R]):
    """References to what an actor's generator yields, one after the other; Ray's ObjectRefGenerator."""

    def __next__(self) -> ObjectRef[R]: ...


def stream(actor: ActorHandle[A], method: Callable[Concatenate[A, P], AsyncIterator[R]], name: str) -> Callable[P, Stream[R]]:
    """The actor's method that yields, as `ask` has the others."""
    return getattr(actor, method.__name__).options(name=name, num_returns="streaming").remote


def follow(
    pending: Mapping[int, Stream[R]],
    deadline_s: float,
    each: Callable[[int, R], None],
    failed: Callable[[int, str], None] = lambda slot, why: None,
    *,
    what: str,
) -> dict[int, str]:
    """Hand on what every slot yields as it comes, until all have ended; errors by slot, and `what`, as of `gather`. `failed`
    hears of an error when it comes."""
    errors: dict[int, str] = {}
    waiting = _Waiting(pending, deadline_s, what)
    while waiting.slots:
        for one, slot in waiting.ready(errors):
            try:
                item: ObjectRef[R] = next(one)
                each(slot, ray.get(item, timeout=60))
            except StopIteration:
                del waiting.slots[one]
            except ray.exceptions.RayError as error:
                del waiting.slots[one]
                errors[slot] = in_one_line(error)
                failed(slot, errors[slot])
    return errors


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
    waiting = _Waiting(pending, deadline_s, what)
    while waiting.slots:
        for ref, slot in waiting.ready(errors):
            del waiting.slots[ref]
            try:
                answers[slot] = ray.get(ref, timeout=60)
            except ray.exceptions.RayError as error:
                errors[slot] = in_one_line(error)
                if grace_s is not None:
                    waiting.until = min(waiting.until, HUB.world.now() + grace_s)
    return answers, errors


class _Waiting(Generic[Q]):
    """Slots whose answers are awaited."""

    def __init__(self, pending: Mapping[int, Q], deadline_s: float, what: str):
        self.slots = {ref: slot for slot, ref in pending.items()}
        self.until = HUB.world.now() + deadline_s
        self._deadline_s, self._what, self._began = deadline_s, what, time.strftime("%H:%M:%S")

    def ready(self, errors: dict[int, str]) -> list[tuple[Q, int]]:
        """Whose answer has come. When the time is up, an error for every slot that is left, and none is awaited any more."""
        # The caller may have been busy past the time with an answer: what has come meanwhile is not late.
        if ready := HUB.wait(list(self.slots), self.until, what=self._what) or HUB.world.wait(list(self.slots), 0.0):
            return [(ref, self.slots[ref]) for ref in ready]
        late = sorted(self.slots.values())
        log.error("%s waits since %s, in vain, for %s", self._what, self._began, ", ".join(map(str, late)))
        errors |= dict.fromkeys(late, f"{LATE} {self._deadline_s:g} s")
        self.slots.clear()
        return []


def in_one_line(error: ray.exceptions.RayError) -> str:
    """What an actor raised, without Ray's wrapping; for an exception that is none of ours also where it was raised."""
    cause = getattr(error, "cause", None) or error
    words = " ".join(COLOUR.sub("", str(cause)).split())
    text = f"{type(cause).__name__}: {words if len(words) < 800 else words[:400] + ' ... ' + words[-400:]}"
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', COLOUR.sub("", str(error)))
    ours = type(cause).__module__.partition(".")[0] in ("rollout", "reward", "learner", "cluster")
    return text if ours or not frames else f"{text} ({frames[-1][0]}:{frames[-1][1]} in {frames[-1][2]})"


def all_answers(
    pending: Mapping[int, ObjectRef[R]], role: str, deadline_s: float, name: str, ill: Callable[[str], str] = lambda _: ""
) -> dict[int, R]:
    """The answers by slot; `name` is the calls', and `ill` tells what was found of an actor. Raises RoleFailed where an answer
    does not come."""
    answers, errors = gather(pending, deadline_s, grace_s=GROUP_GRACE_S, what=f"{role}: {name}")
    if errors:
        errors = {slot: ill(f"{role}-{slot}") or error for slot, error in errors.items()}
        # The rank that failed by itself is told apart from those that only waited for it.
        slot = min(errors, key=lambda s: (LATE in errors[s], _OF_ANOTHER.search(errors[s]) is not None, s))
        raise RoleFailed(f"{role}-{slot}: {errors[slot]}")
    return answers


def within(seconds: float, work: Callable[[], object]) -> None:
    """Do what cannot be interrupted, or raise TimeoutError and leave it to its thread."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"{LATE} {seconds:g} s")
    if raised:
        raise raised[0]
