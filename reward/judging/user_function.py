"""A user's own reward function, as it runs in the pool's processes.

    def score(question, output, gold) -> float | dict[str, float]
    def score(questions, outputs, golds) -> list[float | dict[str, float]]        # batched: lists of equal length

These are strings; a function takes those of the parameters that it needs, and may be `async`. Any other parameter is a column
of the data by its name (in a batched function also with an s behind it, always a list); one with a default takes the column
where there is one, and `**others` all that are left. A single number is the component `score`; a dict names several. They must
be finite numbers, or True and False for 1 and 0. What it prints goes to RUN/logs.

A function may use threads, but starts no processes; it may use the network with reward.network, and has no environment
variables but those that Python needs and those in reward.environment. It is killed, and its output has no score, when a call
takes more than reward.judge_seconds or reward.judge_memory_gb; the rows of a batched call that was killed are tried one by one.
"""

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

ONE, MANY = ("question", "output", "gold"), ("questions", "outputs", "golds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """Which columns of the data a function takes."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Those with a default."""
    others: bool = False
    """All that are left, too."""
    batched: bool = False

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Of a row of the data, what the function is given, by the name of its parameter."""
        names = {name: self.column(name, row) for name in (*self.required, *self.optional)}
        given = {name: row[column] for name, column in names.items() if column is not None}
        left = row.keys() - set(names.values()) - {*ONE, *MANY} if self.others else ()
        return given | {name: row[name] for name in left}

    def column(self, name: str, row: Mapping[str, Any]) -> str | None:
        """The column that a parameter of this name stands for."""
        plural = (name.removesuffix("s"),) if self.batched else ()
        return next((column for column in (name, *plural) if column in row), None)


def adapt(function: Callable) -> tuple[Callable[..., Any], bool, dict[str, Any]]:
    """(a judge of a row, False, its `Wants`), or (a judge of a list of rows, True, ...).

    A row has `question`, `output`, `gold` and `columns`. Raises TypeError for a signature that does not fit.
    """
    if not callable(function):
        raise TypeError(f"found {type(function).__name__}, expected a function")
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    texts = [p.name for p in named if p.name in (*ONE, *MANY)]
    batched = any(name in MANY for name in texts)
    if not texts or batched and not set(texts) <= set(MANY):
        found = ", ".join(p.name for p in parameters) or "none"
        raise TypeError(
            f"{_name(function)}: found parameters {found}; expected some of {', '.join(ONE)}, or of {', '.join(MANY)}, "
            "and besides these any columns of the data"
        )
    empty, columns = inspect.Parameter.empty, [p for p in named if p.name not in texts]
    wants = Wants(
        required=tuple(p.name for p in columns if p.default is empty),
        optional=tuple(p.name for p in columns if p.default is not empty),
        others=any(p.kind is p.VAR_KEYWORD for p in parameters),
        batched=batched,
    )

    def one(question: str, output: str, gold: str, columns: dict[str, Any]) -> dict[str, float]:
        given = {"question": question, "output": output, "gold": gold}
        return components(_value(function(**{name: given[name] for name in texts}, **columns)), function)

    def many(rows: list[dict]) -> list[dict[str, float]]:
        given = {name: [row[name.removesuffix("s")] for row in rows] for name in texts}
        names = dict.fromkeys(name for row in rows for name in row["columns"])
        # A default stands for a column that only some rows have: none of them could tell which.
        shared = [name for name in names if all(name in row["columns"] for row in rows)]
        values = _value(function(**given, **{name: [row["columns"][name] for row in rows] for name in shared}))
        if not isinstance(values, list | tuple) or len(values) != len(rows):
            found = f"{len(values)} values" if isinstance(values, list | tuple) else f"{values!r:.80}"
            raise TypeError(f"{_name(function)} returned {found} for {len(rows)} outputs; expected a list with one for each")
        return [components(value, function) for value in values]

    return many if batched else one, batched, asdict(wants)


def components(value: Any, function: Callable) -> dict[str, float]:
    """What a function returned, by component. Raises TypeError for anything but finite numbers."""
    named = value if isinstance(value, dict) else {"score": value}
    for name, part in named.items():
        part = _scalar(part)
        if not isinstance(name, str) or not isinstance(part, Real) or not math.isfinite(part):
            what = f"{part!r:.80} ({type(part).__name__})" + (f" as {name!r}" if isinstance(value, dict) else "")
            raise TypeError(f"{_name(function)} returned {what}; expected a finite number, or a dict of them by name")
    if not named:
        raise TypeError(f"{_name(function)} returned no component; expected one or more")
    return {name: float(_scalar(part)) for name, part in named.items()}


def _scalar(part: Any) -> Any:
    """What an array or a tensor without dimensions holds."""
    return part.item() if getattr(part, "ndim", None) == 0 else part


def _value(value: Any) -> Any:
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:
    return await value


def _name(function: Callable) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}: {function.__name__}" if code else repr(function)
