"""The value of an answer as it is written: a number, a percentage, words, a collection of values, or a formula.

Numbers are exact fractions: 0.333 is not 1/3, though 0.333333333333333, as programs print it, is. Thousands separators,
currency, trailing zeros, units and dress do not matter. Formulas stay LaTeX here; `formulas` compares them.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import cast

from reward.answers.chinese import chinese_number
from reward.answers.formulas import closed, readable
from reward.answers.normalise import LONGEST_NUMBER, in_interval_notation, normalise
from reward.answers.notations import RANGE, Choice, Date, Ratio, Time, choice, compound
from reward.answers.rules import FORMULA, NAME, UNITED
from reward.answers.units import SCALES, TEXT, without_units

LARGEST_EXPONENT = 1000
LARGEST_DENOMINATOR = 10**4


@dataclass(frozen=True, slots=True)
class Percent:
    """`number` per cent."""

    number: Fraction


@dataclass(frozen=True, slots=True)
class Words:
    """Words in \\text{} or in Chinese, a number in another base, a version or a range, in lower case."""

    text: str


@dataclass(frozen=True, slots=True)
class Formula:
    latex: str


@dataclass(frozen=True, slots=True)
class Collection:
    """Several values. Order matters unless `kind` is set, list or union."""

    kind: str
    """set, list, union, matrix, row, the two brackets of a tuple or interval, such as `[)`, or the names of its items."""
    items: tuple["Value", ...]


Value = Fraction | Percent | Words | Choice | Time | Date | Ratio | Formula | Collection

UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<whole>[0-9]+)\s+(?=[0-9]+/))?(?P<top>{UNSIGNED})(?:e(?P<exponent>[-+]?[0-9]{{1,9}}))?"
    rf"(?:\s*/\s*(?P<bottom>{UNSIGNED}))?(?P<scales>(?:\s*\b(?:{'|'.join(SCALES)})s?\b)*)(?P<percent>\s*(?:%|percent(?:age)?\b|pct\b))?",
    re.IGNORECASE,
)
_REPEATING = re.compile(r"(-?)([0-9]*)\.([0-9]*)\\overline\s*\{([0-9]{1,20})\}")
_PLAIN_WORDS = re.compile(
    r"(?i:yes|no|true|false|even|odd|none|infinite|(?:mon|tues|wednes|thurs|fri|satur|sun)day)|[\u3400-\u9fff]{1,16}"
)
_BASED = re.compile(r"\(?([0-9A-F]+)\)?_\{?\s*\(?([0-9]{1,2})\)?\s*\}?")
_MANY = re.compile(
    r"[:∶比点點时時月]|(?<![A-Za-z])[ap]\.?\s?m|clock|\bto\b|colon|[0-9][-/.][0-9]+[-/.]|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)",
    re.IGNORECASE,
)
"""What stands in every compound value, and hardly in others."""
INTERVALS = ("()", "(]", "[)", "[]")
_PLUS_MINUS = re.compile(r"\\pm(?![a-z])|±")
_MATRIX = re.compile(r"(?:[(\[]\s*)?\\begin\{([pbB]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}(?:\s*[)\]])?", re.DOTALL)
_NAMED = re.compile(rf"(?P<name>{NAME})\s*=\s*(?P<value>[^=]+)")


@lru_cache(maxsize=16384)
def parse(text: str | None) -> Value | None:
    """The value of an answer, or None when it has none that can be found safely."""
    return _value(normalise(text)) if text else None


def _value(plain: str) -> Value | None:
    if (option := choice(plain)) or not plain or not closed(plain):
        return option
    if len(plain) <= LONGEST_NUMBER:
        text = UNITED(plain).strip()
        if _MANY.search(text) and (many := compound(" ".join(text.split()))):
            return Words(many) if isinstance(many, str) else many
        if found := _number(text):
            return found[0]
        alone = without_units(text)
        if RANGE.fullmatch(alone):
            return Words(alone)
        # A formula of numbers alone may have a unit too: 3.0 × 10^8 m/s.
        if alone != text and not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", alone)):
            return _value(alone)
    if words := _words(plain):
        return words
    if collection := _collection(in_interval_notation(plain)):
        return None if None in collection.items else collection
    return Formula(latex) if readable(latex := FORMULA(plain)) else None


def _number(text: str) -> tuple[Fraction | Percent | None] | None:
    """The number, None in its place where it has no value that can be held; None where the text is no number."""
    text = without_units(text)
    if repeating := _REPEATING.fullmatch(text):
        sign, before, after, again = repeating.groups()
        value = Fraction(int(before + after + again) - int(before + after or "0"), 10 ** len(after) * (10 ** len(again) - 1))
        return (-value if sign else value,)
    if (match := _NUMBER.fullmatch(text)) is None:
        found = chinese_number(text)
        return found and (Percent(found[0]) if found[1] == "%" else found[0],)
    top, bottom = (Fraction((match[part] or "1").replace(",", "")) for part in ("top", "bottom"))
    exponent = int(match["exponent"] or 0)
    if abs(exponent) > LARGEST_EXPONENT or bottom == 0:
        return (None,)
    value = int(match["whole"] or 0) + top * Fraction(10) ** exponent / bottom
    # A decimal as programs print them, to twelve digits or more, is the simple fraction that it rounds.
    simple = value.limit_denominator(LARGEST_DENOMINATOR) if value.denominator > 10**11 else value
    value = simple if abs(simple - value) <= abs(value) / 10**12 else value
    value *= math.prod(SCALES[scale.removesuffix("s")] for scale in match["scales"].lower().split())
    value *= -1 if match["sign"] == "-" else 1
    return (Percent(value) if match["percent"] else value,)


def _words(plain: str) -> Words | None:
    dressed = re.fullmatch(rf"{TEXT}\{{([^{{}}]*[A-Za-z\u4e00-\u9fff][^{{}}]*)\}}", plain)
    text = re.sub(r"^(?:[Aa]n?|[Tt]he)\s+|\s+(?=,)|(?<=,)\s+", "", dressed[1].strip(" .")) if dressed else plain
    if based := _BASED.fullmatch(plain):
        return Words(f"{based[1]}_{based[2]}".lower())
    return Words(" ".join(text.lower().split())) if dressed or _PLAIN_WORDS.fullmatch(text) else None


def _collection(plain: str) -> Collection | None:
    if matrix := _MATRIX.fullmatch(plain):
        rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", matrix[2]) if row.strip()]
        return Collection("matrix", tuple(_several("row", map(parse, row)) for row in rows))
    parts = _split(plain, r"\\cup(?![a-z])|∪|(?<=[)\]])\s*U\s*(?=[(\[])")
    if len(parts) > 1:
        return _several("union", map(parse, parts))
    inner = re.fullmatch(r"(\\\{|\\lbrace|\(|\[|\\langle)(.*)(\\\}|\\rbrace|\)|\]|\\rangle)", plain, re.DOTALL)
    if inner and closed(inner[2]):
        items = _split(inner[2], ",")
        if inner[1] in (r"\{", r"\lbrace"):
            return _several("set", _expanded(items) if inner[2].strip() else ())
        if len(items) > 1:
            return _several(inner[1][-1].replace("e", "(") + inner[3][-1].replace("e", ")"), map(parse, items))
        return None
    items = _split(re.sub(rf"{TEXT}\{{\s*(?:and|or)\s*\}}|\b(?:and|or)\b", ",", plain), r"[,;](?:\s*,)?")
    items = [item for item in items if item]
    named = [_NAMED.fullmatch(item) for item in items]
    if len(items) > 1 and all(named) and len({match["name"].partition("_")[0] for match in named if match}) == len(items):
        assigned = sorted((match["name"], match["value"]) for match in named if match)
        return _several(" ".join(name for name, _ in assigned), (parse(value) for _, value in assigned))
    values = _expanded(items) if len(items) > 1 or len(_PLUS_MINUS.findall(plain)) == 1 else ()
    regions = all(isinstance(value, Collection) and value.kind in (*INTERVALS, "union") for value in values)
    kind = "union" if regions and re.search(r"\bor\b", plain) else "list"
    return _several(kind, values) if len(values) > 1 else None


def _several(kind: str, items: Iterable[Value | None]) -> Collection:
    """Also with items that have no value, which no value has that `parse` gives."""
    return Collection(kind, tuple(cast(Iterable[Value], items)))


def _expanded(items: list[str]) -> tuple[Value | None, ...]:
    """The values of a list's items; `a ± b` is two of them."""
    out: list[str] = []
    for item in items:
        both = len(_PLUS_MINUS.findall(item)) == 1
        out += [_PLUS_MINUS.sub(sign, item) for sign in "+-"] if both else [item]
    return tuple(map(parse, out))


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand outside all brackets."""
    parts, start, depth = [], 0, 0
    for match in re.finditer(rf"(?P<open>[(\[{{])|(?P<close>[)\]}}])|{separator}", text):
        depth += (match["open"] is not None) - (match["close"] is not None)
        if depth == 0 and match["close"] is None:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]
