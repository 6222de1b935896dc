"""When two answers are equal: by value."""

from fractions import Fraction

from reward.dress import normalise
from reward.formulas import equal, fingerprint
from reward.values import Collection, Formula, Percent, Value, Words, parse

_UNORDERED = {"set", "list"}


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
    for value, other in (values, values[::-1]):
        # Words need their dress only in a reference.
        if isinstance(value, Words) and not isinstance(other, Words):
            return value.text == " ".join(plain[values.index(other)].lower().split())
    if None not in values and same_value(*values):
        return True
    # One equation may be solved for its unknown, and the other not.
    return all(isinstance(value, Formula) for value in values) and equal(normalise(a, named=True), normalise(b, named=True))


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
    if isinstance(a, Formula | Fraction) and isinstance(b, Formula | Fraction) and (a, b) != (None, None):
        return a == b if isinstance(a, Fraction) and isinstance(b, Fraction) else equal(_latex(a), _latex(b))
    return a == b


def _same_items(a: Collection, b: Collection) -> bool:
    if len(a.items) != len(b.items):
        return False
    if a.kind in _UNORDERED and b.kind in _UNORDERED or a.kind == b.kind == "union":
        return _same_whatever_order(a.items, list(b.items))
    return a.kind == b.kind and all(map(same_value, a.items, b.items))


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
