"""The built-in task that needs a calculator: products too large for a small model's head, so it has to learn to ask one.

A question is `47 * 86 - 529`; the worked output is a program that prints it, what that printed, and `#### N`. The same rule
as in `rollout.tasks.arithmetic` says which items are held out.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from rollout.tasks.arithmetic import Questions, distinct

FACTORS = (12, 98)
LARGEST_TERM = 999
WORST_GUESS = 99


@dataclass(frozen=True, slots=True, kw_only=True)
class Calculation:
    """Example: Calculation(factors=(47, 86), terms=(("-", 529),)) asks `47 * 86 - 529`; its answer is 3513."""

    factors: tuple[int, int]
    terms: tuple[tuple[str, int], ...]
    """Signs, + or -, with what is added or taken away."""

    @property
    def question(self) -> str:
        return " ".join([f"{self.factors[0]} * {self.factors[1]}", *(f"{sign} {term}" for sign, term in self.terms)])

    @property
    def answer(self) -> str:
        terms = sum(term if sign == "+" else -term for sign, term in self.terms)
        return str(self.factors[0] * self.factors[1] + terms)


def calculations(seed: int | str, count: int, held_out: bool, lengths: tuple[int, int]) -> list[Calculation]:
    """`count` different items, the same for the same seed; `lengths` are the least and the most operations.

    The first operation is the product. Raises ValueError where there are not as many.
    """
    rng = random.Random(f"calculator/{seed}/{held_out}")

    def endless():
        while True:
            terms = [(rng.choice("+-"), rng.randint(1, LARGEST_TERM)) for _ in range(rng.randint(*lengths) - 1)]
            yield Calculation(factors=(rng.randint(*FACTORS), rng.randint(*FACTORS)), terms=tuple(terms))

    return distinct(endless(), count, held_out, questions(lengths))


def questions(lengths: tuple[int, int]) -> Questions:
    """All calculations of so many operations, the least and the most."""
    numbers, terms = range(FACTORS[0], FACTORS[1] + 1), [(sign, n) for sign in "+-" for n in range(1, LARGEST_TERM + 1)]
    counts = range(lengths[0] - 1, lengths[1])

    def every() -> Iterator[str]:
        for count in counts:
            for factors, rest in product(product(numbers, numbers), product(terms, repeat=count)):
                yield Calculation(factors=factors, terms=rest).question

    return Questions(total=sum(len(numbers) ** 2 * len(terms) ** count for count in counts), every=every)


def program_demonstration(item: Calculation, imperfect: float, rng: random.Random) -> str:
    """A worked output which, with probability `imperfect`, has no program but a guess that is near and wrong."""
    if rng.random() < imperfect:
        return f"#### {int(item.answer) + rng.choice((-1, 1)) * rng.randint(1, WORST_GUESS)}"
    return f"```python\nprint({item.question})\n```\n```output\n{item.answer}\n```\n#### {item.answer}"
