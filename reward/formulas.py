"""Formulas in LaTeX: read by math-verify, compared by their values at points.

There is no clock here: expressions that could take for ever (towers of powers, huge exponents, factorials) are not read at
all, and what is left is judged in processes that can be killed.
"""

import logging
import re
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sympy

LONGEST_EXPRESSION = 300
DEEPEST = 20
DIGITS = 30
_POINTS = ("0.7391", "1.6180", "2.2361")
"""Positive, so that roots and logarithms are real; every symbol takes another one."""

_POWER = r"(?:\^|\*\*)\s*"
_ENDLESS = re.compile(
    rf"{_POWER}[{{(]?\s*[-+]?[0-9]{{3,}}|{_POWER}[({{][^(){{}}]*{_POWER}|{_POWER}(?:[0-9]+|\{{[^{{}}]*\}})\s*{_POWER}"
    rf"|[)}}\]]\s*{_POWER}\{{?\s*[0-9]{{2,}}.*[)}}\]]\s*{_POWER}\{{?\s*[0-9]{{2,}}|(?:[)}}\]]\s*{_POWER}.*){{5}}|[0-9]{{3,}}\s*!|!\s*!|binom"
)
_MARKUP = re.compile(r"\\(?:begin|end)\{[a-z]+\}|\\[A-Za-z]+|sqrt|sin|cos|tan|log|exp")
# Two numbers side by side are no product.
_SIDE_BY_SIDE = re.compile(r"[0-9]\s+[0-9]")
_PROSE = re.compile(r"[A-Za-z]{3,}|[^\x00-\x7fπ∞√∪∩≤≥²³×·÷]")


def closed(text: str) -> bool:
    """Whether every bracket is closed and none before it opens, at most DEEPEST within each other. ( may end with ], as
    intervals do."""
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if not 0 <= depth <= DEEPEST:
            return False
    return depth == 0


@lru_cache(maxsize=4096)
def readable(latex: str) -> bool:
    """Whether this is a formula that can be read and evaluated safely."""
    return bool(_readings(latex))


@lru_cache(maxsize=4096)
def equal(a: str, b: str) -> bool:
    """Whether two formulas are equal as mathematics. What cannot be read equals nothing."""
    if "".join(a.split()) == "".join(b.split()):
        return True
    readings = _readings(a), _readings(b)
    return all(readings) and _same_expression(readings[0][0], readings[1][0])


@lru_cache(maxsize=4096)
def fingerprint(latex: str) -> str:
    """A text that equal formulas share: their values at a few points, to ten digits."""
    import sympy

    expression = _readings(latex)[0]
    if not isinstance(expression, sympy.Expr):
        return f"{type(expression).__name__} {sympy.srepr(expression)}"
    values = _values(expression, expression.free_symbols)
    if None in values:
        return sympy.srepr(expression)
    if not expression.free_symbols and (exact := sympy.nsimplify(values[0], rational=True, tolerance=1e-20)).is_Rational:
        return str(exact) if exact.q < 10**6 and abs(exact - values[0]) < sympy.Float("1e-25") else f"{values[0].evalf(10)}"
    names = ",".join(sorted(map(str, expression.free_symbols)))
    return " ".join([names, *(str(value.evalf(10)) for value in values)])


def _same_expression(a: "sympy.Basic", b: "sympy.Basic") -> bool:
    import sympy

    if isinstance(a, sympy.core.relational.Relational) and isinstance(b, sympy.core.relational.Relational):
        return _same_relation(a, b)
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return type(a) is type(b) and bool(_math_verify().verify([a], [b], timeout_seconds=None))
    symbols = a.free_symbols | b.free_symbols
    if a.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) or b.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
        return a == b
    return all(_close(x, y) for x, y in zip(_values(a, symbols), _values(b, symbols), strict=True))


def _same_relation(a: "sympy.core.relational.Relational", b: "sympy.core.relational.Relational") -> bool:
    """Two equations or inequalities of the same unknowns are the same when their sides' differences are in one proportion,
    for inequalities a positive one."""
    import sympy

    # a > b is written b < a.
    a, b = (r.reversed if isinstance(r, sympy.Gt | sympy.Ge) else r for r in (a, b))
    left, right = a.lhs - a.rhs, b.lhs - b.rhs
    if type(a) is not type(b) or left.free_symbols != right.free_symbols:
        return False
    pairs = list(zip(_values(left, left.free_symbols), _values(right, left.free_symbols), strict=True))
    (x0, y0), *others = pairs
    if x0 is None or y0 is None or isinstance(a, sympy.Lt | sympy.Le) and not (x0 * y0).is_positive:
        return False
    return all(None not in (x, y) and _close(x * y0, y * x0) for x, y in others)


def _values(expression: "sympy.Expr", symbols: set["sympy.Symbol"]) -> list["sympy.Expr | None"]:
    """The expression at a few points; None where it has no finite value."""
    import sympy

    named = sorted(symbols, key=str)
    rounds = range(len(_POINTS)) if named else range(1)
    out = []
    for turn in rounds:
        at = {s: sympy.Rational(_POINTS[(turn + i) % 3]) + sympy.Rational(i, 7) for i, s in enumerate(named)}
        value = expression.subs(at).evalf(DIGITS)
        out.append(value if value.is_number and value.is_finite else None)
    return out


def _close(x: "sympy.Expr | None", y: "sympy.Expr | None") -> bool:
    if x is None or y is None:
        return False
    import sympy

    # A decimal inside a formula was read as a floating-point number.
    tolerance = sympy.Float("1e-12")
    return bool(abs(x - y) <= tolerance * max(1, abs(x), abs(y)))


@lru_cache(maxsize=4096)
def _readings(latex: str) -> tuple:
    if not (latex and closed(latex)) or len(latex) > LONGEST_EXPRESSION or _ENDLESS.search(latex):
        return ()
    if _SIDE_BY_SIDE.search(latex) or _PROSE.search(_MARKUP.sub(" ", latex)):
        return ()
    reader = _math_verify()
    # Only its LaTeX reader takes the whole text or nothing; the others take the part that they understand.
    whole = [reader.LatexExtractionConfig()]
    return tuple(reader.parse(f"${latex.replace('**', '^')}$", whole, fallback_mode="no_fallback", parsing_timeout=None))


def _math_verify() -> ModuleType:
    import math_verify

    # It warns that its alarm signals are off, which they must be outside the main thread.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
