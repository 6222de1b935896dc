"""Rewrites of a text as literal tables: a pattern, what stands there then, an example, what becomes of it, and why."""

import re
from collections.abc import Callable

Replacement = str | Callable[[re.Match[str]], str]
Row = tuple[str, Replacement, str, str, str]


class Rewrites:
    """Rules that are applied one after another, each to all that it matches."""

    def __init__(self, *rows: Row):
        self.rows = rows
        self._compiled = [(re.compile(pattern), replacement) for pattern, replacement, *_ in rows]

    def __call__(self, text: str) -> str:
        for pattern, replacement in self._compiled:
            text = pattern.sub(replacement, text)
        return text
