"""When two answers are equal: by value."""

import re
from fractions import Fraction

from reward.answers.formulas import equal, fingerprint
from reward.answers.normalise import normalise, unit
from reward.answers.notations import RANGE, Choice, Ratio, Time, same_time
from reward.answers.units import conversion
from reward.answers.values import INTERVALS, Collection, Formula, Percent, Value, Words, parse

_INEQUALITY = re.compile(r"[<>≤≥]|\\[lg][et]")
_UNORDERED = {"set", "list"}


def same_with_units(a: str | None, b: str | None) -> bool:
    """As `same`, where what is measured must be the same too: 3 cm is 0.03 m, and neither 3 nor 3 m."""
    if a is None or b is None or (factor := conversion(wanted, unit(b)) if (wanted := unit(a)) else 1) is None:
        return False
    values = parse(a), parse(b)
    if factor == 1 or not all(isinstance(value, Fraction | Formula) for value in values):
        return same(a, b)
    return (
        equal(_latex(values[0]), rf"({_latex(values[1])})\cdot\frac{{{factor.p}}}{{{factor.q}}}")
        if factor.is_Rational
        else False
    )


def same(a: str | None, b: str | None) -> bool:
    """Whether two answers are equal, by value; `a` is the reference where there is one. No answer equals nothing."""
    if a is None or b is None:
        return False
    plain = normalise(a), normalise(b)
    if not all(plain):
        return False
    if plain[0] == plain[1]:
        return True
    values = parse(a), parse(b)
    if RANGE.fullmatch(plain[1]) and isinstance(values[0], Formula | Fraction):
        return equal(_latex(values[0]), plain[1])
    for value, text, other in ((values[0], plain[1], values[1]), (values[1], plain[0], values[0])):
        # Words need their dress only in a reference, and an option may be named by what it stands for.
        if isinstance(value, Words) and not isinstance(other, Words):
            return " ".join(text.lower().split()) in (value.text, f"({value.text})")
        if isinstance(value, Choice) and not isinstance(other, Choice):
            letters = sorted(re.sub(r"[\s(),.]", "", text).upper())
            return "".join(letters) == value.letters or bool(value.content) and _same_content(value.content, text)
    if None not in values and same_value(*values):
        return True
    # One equation may be solved for its unknown, and the other not.
    full = normalise(a, named=True), normalise(b, named=True)
    kinds = {type(value) for value in values}
    # What was taken for a unit may be a letter: 2 g is 2g.
    solvable = (
        full != plain and kinds <= {Formula, Fraction} or kinds == {Formula, Fraction} or all(map(_INEQUALITY.search, full))
    )
    if solvable and Formula in kinds and equal(*full):
        return True
    return re.search(r"=|\\equiv|mod|\bor\b", full[1]) is not None and _restated(full[0], values[0], full[1])


def _restated(reference: str, value: Value | None, answer: str) -> bool:
    """Whether the answer says what the reference is: of what, as `x^2 + y^2 = 5` does, as what else, or modulo what."""
    if value is None or re.search("=|mod", reference):
        return False
    either = parse(answer)
    if isinstance(either, Collection) and either.kind == "list" and not isinstance(value, Collection):
        return re.search(r"\bor\b", answer) is not None and all(item and same_value(value, item) for item in either.items)
    left, _, right = re.sub(
        r"\(?\s*(?:\\[bp]?mod\b|\\text\s*\{\s*\(?mod\b|\bmod\b).*$", "", answer.replace(r"\equiv", "=")
    ).rpartition("=")
    if "=" in left or re.search(r"[,;<>]|\b(?:or|and|not)\b", re.sub(r"\([^()]*\)", "", answer)):
        return False
    # A number before an unknown, as in 2x = 10, would have to be divided by.
    bare = re.sub(r"[_^]\s*(?:\w|\{[^{}]*\})|\([^()]*\)", "", left)
    found = parse(right)
    return (
        found is not None and same_value(value, found) and (not re.search("[0-9]", bare) or left != right and same(left, right))
    )


def _same_content(content: str, other: str) -> bool:
    return " ".join(content.lower().split()) == " ".join(other.lower().split()) or same(content, other)


def canonical(answer: str | None) -> str | None:
    """A text that equal answers share, so that votes are counted without comparing pairs; None for no answer.

    20% counts as 20: unlike `same`, votes need each answer to be one thing.
    """
    if answer is None or not (plain := normalise(answer)):
        return None
    value = parse(answer)
    return _key(value) if value is not None else f"text {' '.join(plain.lower().split())}"


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
            keys = [_key(item) for item in value.items]
            unordered = value.kind in _UNORDERED or value.kind == "union"
            kind = "set" if value.kind in _UNORDERED else value.kind
            return f"{kind}({'; '.join(sorted(keys) if unordered else keys)})"
    return str(value)


def same_value(a: Value, b: Value) -> bool:
    """Whether two values are equal. 20% equals both 20 (the sign is often left out) and 0.2; 20 does not equal 0.2."""
    if isinstance(a, Percent) and isinstance(b, Fraction):
        return b in (a.number, a.number / 100)
    if isinstance(b, Percent) and isinstance(a, Fraction):
        return same_value(b, a)
    if isinstance(a, Collection) and isinstance(b, Collection):
        return _same_items(a, b)
    if isinstance(a, Choice) and isinstance(b, Choice):
        return a.letters == b.letters and (not (a.content and b.content) or not _other_content(a, b))
    if isinstance(a, Time) and isinstance(b, Time):
        return same_time(a, b)
    if isinstance(a, Ratio) or isinstance(b, Ratio):
        return _same_ratio(_terms(a), _terms(b))
    if isinstance(a, Time) and isinstance(b, Fraction) or isinstance(b, Time) and isinstance(a, Fraction):
        return _hour(a) == _hour(b)
    if isinstance(a, Formula | Fraction) and isinstance(b, Formula | Fraction) and (a, b) != (None, None):
        return a == b if isinstance(a, Fraction) and isinstance(b, Fraction) else equal(_latex(a), _latex(b))
    return a == b


def _other_content(a: Choice, b: Choice) -> bool:
    """Whether two values are said to be what one letter stands for."""
    values = parse(a.content), parse(b.content)
    return all(isinstance(value, Fraction) for value in values) and values[0] != values[1]


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


def _hour(value: Value) -> Fraction | int | None:
    return (value.hour % 12 or 12) if isinstance(value, Time) and value.bare else value if isinstance(value, Fraction) else None


def _same_items(a: Collection, b: Collection) -> bool:
    if "()" in (a.kind, b.kind) and a.kind != b.kind:
        row, other = _in_order(a), _in_order(b)
        return len(row) == len(other) and all(map(same_value, row, other))
    if len(a.items) != len(b.items):
        return False
    if a.kind in _UNORDERED and b.kind in _UNORDERED or a.kind == b.kind == "union":
        return _same_whatever_order(a.items, list(b.items))
    return a.kind == b.kind and all(map(same_value, a.items, b.items))


def _in_order(values: Collection) -> tuple[Value, ...]:
    """The coordinates of a point: in round brackets, by name, or, three or more of them, as a list."""
    named = values.kind not in {*_UNORDERED, "union", "matrix", "row", *INTERVALS}
    return values.items if named or values.kind == "()" or values.kind == "list" and len(values.items) > 2 else ()


def _same_whatever_order(items: tuple[Value, ...], others: list[Value]) -> bool:
    for item in items:
        found = next((place for place, other in enumerate(others) if same_value(item, other)), None)
        if found is None:
            return False
        del others[found]
    return True


def _latex(value: Formula | Fraction) -> str:
    if isinstance(value, Formula):
        return value.latex
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
