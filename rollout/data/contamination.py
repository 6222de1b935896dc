"""Whether training texts hold texts of a benchmark, by the rule with which DeepSeekMath (section 2.1) cleans its corpus.

A benchmark text of at least 10 words is found by any run of 10 of its words; a shorter one of at least 3 words as a whole; one
of fewer words only where the training text is the same. Case, punctuation and white space do not count; a Chinese character
and a sign between numbers are words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

RUN, SHORTEST = 10, 3
_WORD = re.compile(
    r"[+*/=^<>×÷]|(?<=[0-9])\s*[-−]\s*(?=[0-9])|[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+(?:\.[0-9]+)?"
)

Text = tuple[str, str]
"""Where a text stands, and the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A training text that holds words of a benchmark text."""

    training: str
    """Where the training text stands."""
    benchmark: str
    """Where the benchmark text stands."""
    words: str
    """The words that both have."""


def overlaps(training: Sequence[Text], benchmark: Sequence[Text]) -> list[Overlap]:
    """The training texts that hold a benchmark text, each with the first that it holds."""
    runs: dict[tuple[str, ...], str] = {}
    for where, text in benchmark:
        for run in _runs(words(text), RUN):
            runs.setdefault(run, where)
    lengths = sorted({len(run) for run in runs if len(run) >= SHORTEST}, reverse=True)
    found = []
    for where, text in training:
        spoken = words(text)
        candidates = [run for length in lengths for run in _runs(spoken, length) if len(run) == length]
        run = next((run for run in [*candidates, tuple(spoken)] if run in runs), None)
        if run:
            found.append(Overlap(training=where, benchmark=runs[run], words=" ".join(run)))
    return found


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.strip().lower() for word in _WORD.findall(text)]


def _runs(spoken: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """All runs of this many words; the whole where there are fewer."""
    if len(spoken) <= length:
        return [tuple(spoken)]
    return [tuple(spoken[i : i + length]) for i in range(len(spoken) - length + 1)]
