"""The history of a reward model's training examples, mixed into fresh ones for continual training (algorithm 1 of the paper).

The paper says "10% historical data" and not of what: here a share of the training examples, history included.
"""

import json
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from pydantic import TypeAdapter

from reward.types import LabelledGroup

_GROUPS = TypeAdapter(list[LabelledGroup])


def dumped(groups: Sequence[LabelledGroup]) -> list[Any]:
    """For JSON."""
    return _GROUPS.dump_python(list(groups), mode="json")


def loaded(rows: Sequence[Any]) -> list[LabelledGroup]:
    """The inverse of `dumped`, also after JSON."""
    return _GROUPS.validate_json(json.dumps(rows))


class Replay:
    """Past groups, bounded, each as likely to be kept as any other (reservoir sampling, Vitter's algorithm R)."""

    def __init__(self, capacity_groups: int, share: float = 0.1, seed: int = 0):
        """Raises ValueError for a capacity below 1 or a share outside [0, 1)."""
        if capacity_groups < 1 or not 0 <= share < 1:
            raise ValueError(f"replay of {capacity_groups} groups, share {share}; expected at least 1, and 0 <= share < 1")
        self._capacity, self._share, self._seed = capacity_groups, Fraction(str(share)), seed
        self._groups: list[LabelledGroup] = []
        self._next: list[LabelledGroup] = []
        """The history once the stage under way is done."""
        self._seen = 0
        self._fresh = self._replayed = 0

    @property
    def groups(self) -> list[LabelledGroup]:
        """What the history holds."""
        return list(self._groups)

    def mix(self, fresh_groups: Sequence[LabelledGroup], step: int) -> list[LabelledGroup]:
        """The fresh groups, then different groups of the history, the same for the same seed, step and state.

        As many as bring the share of all examples mixed so far, this call included, nearest to `share`; what a call cannot
        give is owed to the next. While the history is empty nothing is added and nothing is owed.
        """
        if not self._groups:
            return list(fresh_groups)
        self._fresh += sum(len(group.labelled) for group in fresh_groups)
        wanted = self._share * self._fresh / (1 - self._share)
        added: list[LabelledGroup] = []
        for group in random.Random(f"replay/{self._seed}/{step}").sample(self._groups, len(self._groups)):
            if wanted - self._replayed < Fraction(len(group.labelled), 2):
                break
            added.append(group)
            self._replayed += len(group.labelled)
        return [*fresh_groups, *added]

    def add(self, groups: Sequence[LabelledGroup]) -> None:
        """Offer fresh groups to the history; they are mixed in once the stage is done."""
        for group in groups:
            self._seen += 1
            index = random.Random(f"reservoir/{self._seed}/{self._seen}").randrange(self._seen)
            if len(self._next) < self._capacity:
                self._next.append(group)
            elif index < self._capacity:
                self._next[index] = group

    def finish_stage(self) -> None:
        """What was fresh is history from here on."""
        self._groups = list(self._next)

    def state(self) -> dict[str, Any]:
        """Everything but the constructor's arguments, for JSON."""
        return {
            "groups": dumped(self._groups),
            "next": dumped(self._next),
            "seen": self._seen,
            "fresh": self._fresh,
            "replayed": self._replayed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, also after JSON."""
        self._groups, self._next = (loaded(state[name]) for name in ("groups", "next"))
        self._seen, self._fresh, self._replayed = state["seen"], state["fresh"], state["replayed"]
