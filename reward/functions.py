"""A user's own reward function, as it runs in the pool's processes.

    def score(question, output, gold) -> float | dict[str, float]
    def score(questions, outputs, golds) -> list[float | dict[str, float]]        # batched: lists of equal length

All are strings; a function takes those of the parameters that it needs, and may be `async`. A single number is the component
`score`; a dict names several. They must be finite numbers. A function may use threads, but starts no processes; it may use the
network with reward.network, and has no environment variables but those that Python needs and those in reward.environment. It is
killed, and its output has no score, when a call takes more than reward.judge_seconds or reward.judge_memory_gb; the rows of a
batched call that was killed are tried one by one.
"""

import asyncio
import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

ONE, MANY = ("question", "output", "gold"), ("questions", "outputs", "golds")


def adapt(function: Callable) -> tuple[Callable[[Any], Any], bool]:
    """(a judge of a row, False), or (a judge of a list of rows, True). Raises TypeError for a signature that does not fit."""
    if not callable(function):
        raise TypeError(f"found {type(function).__name__}, expected a function")
    parameters = inspect.signature(function).parameters.values()
    asked = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    taken = [p.name for p in parameters if p.name in (*ONE, *MANY)]
    if not asked or not (set(asked) <= set(ONE) or set(asked) <= set(MANY)):
        found = ", ".join(p.name for p in parameters) or "none"
        raise TypeError(
            f"{_name(function)}: found parameters {found}; expected some of {', '.join(ONE)}, or of {', '.join(MANY)}"
        )
    if set(asked) <= set(ONE):
        return lambda **row: components(_value(function(**{name: row[name] for name in taken})), function), False

    def judge(rows: list[dict]) -> list[dict[str, float]]:
        values = _value(function(**{name: [row[name.removesuffix("s")] for row in rows] for name in taken}))
        if not isinstance(values, list | tuple) or len(values) != len(rows):
            found = f"{len(values)} values" if isinstance(values, list | tuple) else f"{values!r:.80}"
            raise TypeError(f"{_name(function)} returned {found} for {len(rows)} outputs; expected a list with one for each")
        return [components(value, function) for value in values]

    return judge, True


def components(value: Any, function: Callable) -> dict[str, float]:
    """What a function returned, by component. Raises TypeError for anything but finite numbers."""
    named = value if isinstance(value, dict) else {"score": value}
    for name, part in named.items():
        if not isinstance(name, str) or isinstance(part, bool) or not isinstance(part, Real) or not math.isfinite(part):
            what = f"{part!r:.80} ({type(part).__name__})" + (f" as {name!r}" if isinstance(value, dict) else "")
            raise TypeError(f"{_name(function)} returned {what}; expected a finite number, or a dict of them by name")
    if not named:
        raise TypeError(f"{_name(function)} returned no component; expected one or more")
    return {name: float(part) for name, part in named.items()}


def _value(value: Any) -> Any:
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:
    return await value


def _name(function: Callable) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}: {function.__name__}" if code else repr(function)
