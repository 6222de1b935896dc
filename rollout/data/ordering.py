"""Rows by ordinal: ordinal n is row p_e[n % N] of epoch e = n // N, where p_e is a permutation drawn from the seed."""

import random
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Ordered(Generic[T]):
    """Every row once per epoch; the order depends on nothing but their number and the seed. `len` is an epoch's length."""

    def __init__(self, rows: Sequence[T], seed: int):
        self.rows, self._seed = list(rows), seed
        self._epoch, self._order = -1, []

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, ordinal: int) -> T:
        epoch, position = divmod(ordinal, len(self.rows))
        if epoch != self._epoch:
            order = list(range(len(self.rows)))
            random.Random(f"{self._seed}/epoch {epoch}").shuffle(order)
            self._epoch, self._order = epoch, order
        return self.rows[self._order[position]]
