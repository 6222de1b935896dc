"""When two answers are equal: by value."""

import re
from fractions import Fraction

import sympy

from reward.answers.formulas import equal, fingerprint
from reward.answers.normalise import normalise, unit
from reward.answers.notations import Choice, Ratio, Time, same_time
from reward.answers.units import conversion
from reward.answers.values import INTERVALS, Collection, Formula, Percent, Value, Words, parse

_INEQUALITY = re.compile(r"[<>≤≥]|\\[lg][et]")
_UNORDERED = {"set", "list"}


def same_with_units(a: str | None, b: str | None) -> bool:
    """As `same`, where what is measured must be the same too: 3 cm is 0.03 m, and neither 3 nor 3 m. A reference without a unit
    asks for none."""
    if a is None or b is None or not (wanted := unit(a)):
        return same(a, b)
    factor, first, other = conversion(wanted, unit(b)), parse(a), parse(b)
    if factor is None or factor == 1 or not isinstance(first, Fraction | Formula) or not isinstance(other, Fraction | Formula):
        return factor is not None and same(a, b)
    times = rf"\cdot\frac{{{factor.p}}}{{{factor.q}}}" if isinstance(factor, sympy.Rational) else ""
    return bool(times) and equal(_latex(first), f"({_latex(other)}){times}")


def same(a: str | None, b: str | None) -> bool:
    """Whether two answers are equal, by value; `a` is the reference where there is one. No answer equals nothing."""
    if a is None or b is None:
        return False
    plain = normalise(a), normalise(b)
    if not all(plain) or plain[0] == plain[1]:
        return all(plain)
    values = parse(a), parse(b)
    for value, text, other in ((values[0], plain[1], values[1]), (values[1], plain[0], values[0])):
        # Words need their dress only in a reference, and an option may be named by what it stands for.
        if isinstance(value, Words) and not isinstance(other, Words):
            return _folded(text) in (value.text, f"({value.text})")
        if isinstance(value, Choice) and not isinstance(other, Choice):
            letters = "".join(sorted(re.sub(r"[\s(),.]", "", text).upper()))
            said = value.content
            return letters == value.letters or bool(said) and (_folded(said) == _folded(text) or same(said, text))
    if values[0] is not None and values[1] is not None and same_value(values[0], values[1]):
        return True
    # One equation may be solved for its unknown, and the other not. What was taken for a unit may be a letter: 2 g is 2g.
    full, kinds = (normalise(a, named=True), normalise(b, named=True)), {type(value) for value in values}
    solvable = Formula in kinds and (kinds <= {Formula, Fraction} or all(map(_INEQUALITY.search, full)))
    return solvable and equal(*full) or _restated(full[0], values[0], full[1])


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _restated(reference: str, value: Value | None, answer: str) -> bool:
    """Whether the answer says what the reference is: of what, as `x^2 + y^2 = 5` does, as what else, or modulo what."""
    if value is None or re.search("=|mod", reference) or not re.search(r"=|\\equiv|mod|\bor\b", answer):
        return False
    either = parse(answer)
    if isinstance(either, Collection) and either.kind == "list" and not isinstance(value, Collection):
        return bool(re.search(r"\bor\b", answer)) and all(item and same_value(value, item) for item in either.items)
    answer = re.sub(r"\(?\s*(?:\\[bp]?mod\b|\\text\s*\{\s*\(?mod\b|\bmod\b).*$", "", answer.replace(r"\equiv", "="))
    left, _, right = answer.rpartition("=")
    if "=" in left or re.search(r"[,;<>]|\b(?:or|and|not)\b", re.sub(r"\([^()]*\)", "", answer)):
        return False
    if (found := parse(right)) is None or not same_value(value, found):
        return False
    # A number before an unknown, as in 2x = 10, would have to be divided by.
    bare = re.sub(r"[_^]\s*(?:\w|\{[^{}]*\})|\([^()]*\)", "", left)
    return not re.search("[0-9]", bare) or left != right and same(left, right)


def canonical(answer: str | None) -> str | None:
    """A text that equal answers share, so that votes are counted without comparing pairs; None for no answer.

    20% counts as 20: unlike `same`, votes need each answer to be one thing.
    """
    if answer is None or not (plain := normalise(answer)):
        return None
    value = parse(answer)
    return _key(value) if value is not None else f"text {_folded(plain)}"


def _key(value: Value) -> str:
    match value:
        case Percent():
            return str(value.number)
        case Words():
            return f"text {value.text}"
        case Choice():
            return f"option {value.letters}"
        case Time():
            return f"time {value.hour}:{value.minute}:{value.second}"
        case Ratio():
            return f"ratio {' '.join(fingerprint(f'({term})/({value.terms[0]})') for term in value.terms)}"
        case Formula():
            return fingerprint(value.latex)
        case Collection():
            kind, keys = "set" if value.kind in _UNORDERED else value.kind, [_key(item) for item in value.items]
            return f"{kind}({'; '.join(sorted(keys) if kind in ('set', 'union') else keys)})"
    return str(value)


def same_value(a: Value, b: Value) -> bool:
    """Whether two values are equal. 20% equals both 20 (the sign is often left out) and 0.2; 20 does not equal 0.2."""
    match a, b:
        case (Percent(), Fraction()):
            return b in (a.number, a.number / 100)
        case (Fraction(), Percent()) | (Fraction(), Time()):
            return same_value(b, a)
        case (Collection(), Collection()):
            return _same_items(a, b)
        case (Choice(), Choice()):
            said = parse(a.content), parse(b.content)
            return a.letters == b.letters and (not all(isinstance(x, Fraction) for x in said) or said[0] == said[1])
        case (Time(), Time()):
            return same_time(a, b)
        case (Ratio(), _) | (_, Ratio()):
            return _same_ratio(_terms(a), _terms(b))
        case (Time(bare=True), Fraction()):
            return (a.hour % 12 or 12) == b
        case (Fraction(), Fraction()):
            return a == b
        case (Formula() | Fraction(), Formula() | Fraction()):
            return equal(_latex(a), _latex(b))
    return a == b


def _terms(value: Value) -> tuple[str, ...]:
    """What a ratio is of; a fraction is one of two numbers, and 15:10 may be one too."""
    match value:
        case Ratio():
            return value.terms
        case Time(noon="", bare=False, second=0) if value.hour and value.minute:
            return str(value.hour), str(value.minute)
        case Fraction() | Formula():
            return _latex(value), "1"
    return ()


def _same_ratio(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    crossed = [(rf"({x})\cdot({b[0]})", rf"({y})\cdot({a[0]})") for x, y in zip(a, b, strict=False)]
    return len(a) == len(b) > 1 and all(equal(x, y) for x, y in crossed[1:])


def _same_items(a: Collection, b: Collection) -> bool:
    if "()" in (a.kind, b.kind) and a.kind != b.kind:
        row, other = _in_order(a), _in_order(b)
        return len(row) == len(other) and all(map(same_value, row, other))
    if len(a.items) != len(b.items):
        return False
    if a.kind == b.kind == "union" or {a.kind, b.kind} <= _UNORDERED:
        return _same_whatever_order(a.items, list(b.items))
    return a.kind == b.kind and all(map(same_value, a.items, b.items))


def _in_order(values: Collection) -> tuple[Value, ...]:
    """The coordinates of a point: in round brackets, by name, or, three or more of them, as a list."""
    named = values.kind not in {*_UNORDERED, "union", "matrix", "row", *INTERVALS}
    return values.items if named or values.kind == "()" or values.kind == "list" and len(values.items) > 2 else ()


def _same_whatever_order(items: tuple[Value, ...], others: list[Value]) -> bool:
    for item in items:
        found = next((index for index, other in enumerate(others) if same_value(item, other)), None)
        if found is None:
            return False
        del others[found]
    return True


def _latex(value: Formula | Fraction) -> str:
    return value.latex if isinstance(value, Formula) else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
