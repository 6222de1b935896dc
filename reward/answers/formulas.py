"""Formulas in LaTeX: read by math-verify, compared by their values at points.

There is no clock here: expressions that could take for ever (towers of powers, huge exponents, integrals) are not read at
all, and what is left is judged in processes that can be killed.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar, cast

import math_verify
import sympy
from sympy.core.relational import Relational

from reward.answers.rules import READER

# It warns that its alarm signals are off, which they must be outside the main thread.
logging.getLogger("math_verify").setLevel(logging.ERROR)
B = TypeVar("B")
# Only its LaTeX reader takes the whole text or nothing; the others take the part that they understand.
_READER = [math_verify.LatexExtractionConfig()]
LONGEST_EXPRESSION = 300
DEEPEST = 20
LARGEST_POWER = 10**4
"""The exponents of a formula together: values at points are exact, and a power has as many digits as its exponent."""
DEEPEST_FORMULA = 8
MOST = {
    r"\\[A-Za-z]+": 40, r"\||\\[lr]?vert": 8, r"[=<>]|\\[lg]eq?": 4, "_": 16, r"\\sqrt": 12,
    r"\\(?:arc)?(?:sin|cos|tan|sec|csc|cot)|\\(?:log|ln|exp)": 6,
}  # fmt: skip
"""How often what the reader tries in many ways may stand in a formula: its time doubles with each."""
DIGITS = 30
_POINTS = ("0.7391", "1.6180", "2.2361", "11.4142")
"""Positive, so that roots and logarithms are real; every symbol takes another one."""
_NEGATIVE = ("-1.3171", "-4.7123")
"""Where something stands between bars."""

_POWER = re.compile(r"(?:\^|\*\*)\s*")
_FACTORIAL = re.compile(r"(?<![0-9.)}\]!])(?:[0-9]{1,2}|[a-z])\s*!(?!\s*!)")
_BINOMIAL = re.compile(r"\\binom\s*\{\s*[0-9]{1,2}\s*\}\s*\{\s*[0-9]{1,2}\s*\}")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_COMMANDS = frozenset(
    re.findall(
        "[A-Za-z]+",
        "frac sqrt cdot times div pm mp pi infty ln log exp sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh le leq"
        " lt ge geq gt ne neq in cup cap emptyset mathbb lfloor rfloor lceil rceil begin end text lvert rvert vert mid alpha"
        " beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi chi psi"
        " omega Delta Omega Phi Psi Sigma Theta Lambda binom operatorname",
    )
)
"""What may stand in a formula; others (integrals, sums, limits) compute, and may do so for ever."""
_MARKUP = re.compile(r"\\(?:begin|end)\{[a-z]+\}|\\[A-Za-z]+|sqrt|sin|cos|tan|log|exp")
# Two numbers side by side are no product.
_SIDE_BY_SIDE = re.compile(r"[0-9]\s+[0-9]")
_NAMES = re.compile(r"(?<![A-Za-z])(?:xyz|abc|pqr|rst|uvw)(?![A-Za-z])")
_PROSE = re.compile(
    r"[A-Za-z]{3,}|\b(?:[Ii]t|[Ii]s|[Ss]o|[Ww]e|[Tt]o|[Oo]f|[Aa]t|[Aa]s|[Bb]e|[Bb]y|[Hh]e|[Ii]f|[Oo]n|[Oo]r)\b|[^\x00-\x7fπ∞√∪∩≤≥²³×·÷]"
)


def closed(text: str, deepest: int = DEEPEST) -> bool:
    """Whether every bracket is closed and none before it opens, at most `deepest` within each other. ( may end with ], as
    intervals do."""
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if not 0 <= depth <= deepest:
            return False
    return depth == 0


@lru_cache(maxsize=4096)
def readable(latex: str) -> bool:
    """Whether this is a formula that can be read and evaluated safely."""
    return _tried(_reading, latex) is not None


@lru_cache(maxsize=4096)
def equal(a: str, b: str) -> bool:
    """Whether two formulas are equal as mathematics. What cannot be read equals nothing."""
    if "".join(a.split()) == "".join(b.split()):
        return True
    readings = _tried(_reading, a), _tried(_reading, b)
    return None not in readings and bool(_tried(_same_expression, *readings))


@lru_cache(maxsize=4096)
def fingerprint(latex: str) -> str:
    """A text that equal formulas share: their values at a few points, to ten digits."""
    return _tried(_fingerprint, latex) or f"text {latex}"


def _tried(function: Callable[..., B], *arguments: Any) -> B | None:
    """What the function makes of a text, or None where the text is beyond it.

    The libraries raise almost anything on texts that they were not made for, and an output may be any text.
    """
    try:
        return function(*arguments)
    except MemoryError:
        raise
    except Exception:
        return None


def _ends(latex: str) -> bool:
    """Whether reading and evaluating it ends soon: no towers of powers, no large exponents or factorials, no commands that
    compute, and not too much within and beside each other."""
    if not closed(latex, DEEPEST_FORMULA) or any(len(re.findall(what, latex)) > most for what, most in MOST.items()):
        return False
    if not _COMMANDS.issuperset(_COMMAND.findall(latex)) or "binom" in _BINOMIAL.sub("", latex):
        return False
    if "!" in latex and ("!" in _FACTORIAL.sub("", latex) or _POWER.search(latex)):
        return False
    bounds = []
    for match in _POWER.finditer(latex):
        exponent = _group(latex[match.end() :])
        if _POWER.search(exponent) or _POWER.match(latex[match.end() + len(exponent) :].lstrip()):
            return False
        bounds.append(math.prod(max(2, int(part)) for part in re.findall(r"[0-9]{1,9}", exponent)))
    of_group = re.search(rf"[)}}\]]\s*{_POWER.pattern}", latex)
    return sum(bounds) <= LARGEST_POWER and (not of_group or math.prod(bounds) <= LARGEST_POWER)


def _group(text: str) -> str:
    """The bracket that a text begins with, or what stands before the next sign."""
    if not text[:1] or text[0] not in "{(":
        begins = re.match(r"-?\s*(?:[0-9.]+|\\?[A-Za-z]*)", text)
        return begins[0] if begins else ""
    end = next((i for i in range(1, len(text) + 1) if closed(text[:i])), len(text))
    return text[:end]


def _fingerprint(latex: str) -> str:
    expression: Any = _reading(latex)
    if not isinstance(expression, sympy.Expr):
        return f"{type(expression).__name__} {sympy.srepr(expression)}"
    values = _values(expression, expression.free_symbols)
    if None in values:
        return sympy.srepr(expression)
    if not expression.free_symbols and (exact := sympy.nsimplify(values[0], rational=True, tolerance=1e-20)).is_Rational:
        return str(exact) if exact.q < 10**6 and abs(exact - values[0]) < sympy.Float("1e-25") else f"{values[0].evalf(10)}"
    names = ",".join(sorted(map(str, expression.free_symbols)))
    return " ".join([names, *(str(value.evalf(10)) for value in values)])


def _same_expression(a: Any, b: Any) -> bool:
    if isinstance(a, Relational) and isinstance(b, Relational):
        return _same_relation(a, b)
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return type(a) is type(b) and bool(math_verify.verify([a], [b], timeout_seconds=None))
    if any(x.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) for x in (a, b)):
        return a == b
    points, symbols = _POINTS + (_NEGATIVE if a.has(sympy.Abs) or b.has(sympy.Abs) else ()), a.free_symbols | b.free_symbols
    # A decimal inside a formula was read as a floating-point number, and one of many digits was printed from one.
    rounded = any(x.has(sympy.Float) or isinstance(x, sympy.Rational) and x.q > 10**11 for x in (a, b))
    values = zip(_values(a, symbols, points), _values(b, symbols, points), strict=True)
    return all(_close(x, y, "1e-12" if rounded else "1e-20") for x, y in values)


def _same_relation(a: Any, b: Any) -> bool:
    """Two equations or inequalities of the same unknowns are the same when their sides' differences are in one proportion,
    for inequalities a positive one."""
    # a > b is written b < a.
    a, b = (r.reversed if isinstance(r, sympy.Gt | sympy.Ge) else r for r in (a, b))
    left, right = a.lhs - a.rhs, b.lhs - b.rhs
    if type(a) is not type(b) or left.free_symbols != right.free_symbols:
        return False
    values = list(zip(_values(left, left.free_symbols), _values(right, left.free_symbols), strict=True))
    (x0, y0), *others = values
    if x0 is None or y0 is None or isinstance(a, sympy.Lt | sympy.Le) and not (x0 * y0).is_positive:
        return False
    return all(None not in (x, y) and _close(x * y0, y * x0, "1e-12") for x, y in others)


def _values(expression: Any, symbols: Iterable[Any], points: Sequence[str] = _POINTS) -> list[Any]:
    """The expression at a few points, exactly where it is rational; None where it has no finite value."""
    named = sorted(symbols, key=str)
    out = []
    for turn in range(len(points)) if named else range(1):
        at = {s: sympy.Rational(points[(turn + i) % len(points)]) + sympy.Rational(i, 7) for i, s in enumerate(named)}
        value = expression.subs(at).doit()
        value = value if value.is_Rational else value.evalf(DIGITS)
        out.append(value if value.is_number and value.is_finite else None)
    return out


def _close(x: sympy.Expr | None, y: sympy.Expr | None, tolerance: str) -> bool:
    if x is None or y is None:
        return False
    if x.is_Rational and y.is_Rational:
        return x == y
    # What is 0 only in truth comes out a little beside it.
    return bool(abs(x - y) <= sympy.Float(tolerance) * max(abs(x), abs(y)) + sympy.Float("1e-25"))


@lru_cache(maxsize=4096)
def _reading(latex: str) -> sympy.Basic | None:
    if not 0 < len(latex) <= LONGEST_EXPRESSION or not _ends(latex) or "'" in latex or _SIDE_BY_SIDE.search(latex):
        return None
    bare = _MARKUP.sub(" ", latex)
    if _PROSE.search(_NAMES.sub(" ", bare)):
        return None
    found = math_verify.parse(f"${READER(latex)}$", _READER, fallback_mode="no_fallback", parsing_timeout=cast(int, None))
    read, letters = str(found[0]), set(re.findall("[a-z]", bare.lower())) - {"e", "i"}
    # What is not finite, as 1/0, has no value.
    if re.search(r"\b(?:zoo|nan)\b", read) or not letters <= set(re.findall("[a-z]", read.lower())):
        return None
    i = [s for s in found[0].free_symbols if s.name == "i" and isinstance(found[0], sympy.Expr)]
    return found[0].subs(dict.fromkeys(i, sympy.I))
