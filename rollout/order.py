"""Ordinals to rows: ordinal n is row p_e[n % N] of epoch e = n // N, where p_e is a permutation drawn from the seed."""

import random


class Order:
    """Every row once per epoch; depends on nothing but size and seed."""

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._epoch, self._rows = -1, []

    def row(self, ordinal: int) -> int:
        epoch, place = divmod(ordinal, self._size)
        if epoch != self._epoch:
            rows = list(range(self._size))
            random.Random(f"{self._seed}/epoch {epoch}").shuffle(rows)
            self._epoch, self._rows = epoch, rows
        return self._rows[place]
