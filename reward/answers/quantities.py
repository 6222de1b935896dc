"""Units of answers, for those who ask to have them compared: 3 cm is 0.03 m and 3 centimetres, not 3 m or 3 apples."""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from reward.answers.dress import DEGREES, plain_characters, written
from reward.answers.units import TEXT, without_dressed_units, without_units

if TYPE_CHECKING:
    import sympy

_CURRENCIES = {r"\$": "dollar", "US$": "dollar", "$": "dollar", "€": "euro", "£": "gbp", "¥": "yuan", "RMB": "yuan"}
_CURRENCY = re.compile(r"US\$|\\\$|[€£¥]|\bRMB\b|\$(?=[^$]*$)(?<=^.)|\$(?=[^$]*$)(?<=^-.)")
_NAMES = {
    "元": "yuan", "块": "yuan", "米": "m", "厘米": "cm", "毫米": "mm",
    "千米": "km", "公里": "km", "克": "g", "千克": "kg", "公斤": "kg",
    "升": "l", "毫升": "ml", "秒": "s", "分钟": "minute", "小时": "hour",
    "天": "day", "年": "year", "度": "degree", "Ω": "ohm", "L": "l",
    "mL": "ml", "℃": "celsius", "feet": "ft", "in": "inch",
    "inches": "inch", "hr": "hour", "hrs": "hour", "min": "minute", "sec": "s",
    "lb": "pound", "lbs": "pound", "people": "person", "children": "child",
}  # fmt: skip
_PREFIXES = {"n": -9, "μ": -6, "µ": -6, "m": -3, "k": 3, "M": 6, "G": 9}
_PART = re.compile(r"(/|每|\bper\s)?[\s.·*,]*(square|sq|平方|cubic|cu|立方)?\s*\.?\s*([^\W\d_]+)(?:\s*\^?\{?(-?[1-4])\}?)?")
_POWERS = {"": 1, "square": 2, "sq": 2, "平方": 2, "cubic": 3, "cu": 3, "立方": 3}


def conversion(reference: str, answer: str) -> "sympy.Expr | None":
    """How many units of the reference one of the answer's is; None where they measure something else. A reference without a
    unit asks for none."""
    (scale, measured), (other, found) = _scaled(wanted := unit(reference)), _scaled(unit(answer))
    if not wanted:
        return scale
    return other / scale if measured == found else None


@lru_cache(maxsize=4096)
def unit(answer: str) -> str:
    """The unit of an answer as it is written, in plain characters; empty where there is none."""
    text = plain_characters(answer).strip()
    if money := _CURRENCY.search(text):
        return _CURRENCIES[money[0]]
    kept = written(answer)
    behind = kept[len(without_dressed_units(kept)) :]
    if not behind.strip():
        bare = re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r" \1 ", kept).strip()
        behind = bare[len(without_units(bare)) :]
    behind = behind.replace(r"\Omega", "Ω").replace(r"\mu", "μ").translate(str.maketrans({"²": "^2", "³": "^3"}))
    behind = re.sub(rf"{TEXT}|\\cdot|[{{}}~]", " ", behind)
    return " ".join(behind.split()) or ("degree" if re.search(DEGREES, text) else "")


@lru_cache(maxsize=4096)
def _scaled(text: str) -> tuple["sympy.Expr", frozenset]:
    """A unit in SI units: the factor, and the power of each dimension or, for what is counted, of its name."""
    import sympy
    from sympy.physics.units.systems import SI

    scale, measured = sympy.Integer(1), {}
    for over, raised, name, power in _PART.findall(text):
        times = int(power or 1) * _POWERS[raised] * (-1 if over else 1)
        factor, quantity = _quantity(name)
        if quantity is None:
            measured[factor] = measured.get(factor, 0) + times
            continue
        scale *= (sympy.Integer(10) ** factor * SI.get_quantity_scale_factor(quantity)) ** times
        dimensions = SI.get_dimension_system().get_dimensional_dependencies(SI.get_quantity_dimension(quantity))
        for dimension, of in dimensions.items():
            measured[str(dimension.name)] = measured.get(str(dimension.name), 0) + of * times
    return scale, frozenset((name, power) for name, power in measured.items() if power)


def _quantity(name: str) -> "tuple[int | str, sympy.Expr | None]":
    """The power of ten and the unit that a name stands for; the name itself, in the singular, and None where it is no unit."""
    from sympy.physics import units

    name = _NAMES.get(name, name).replace("metre", "meter").replace("litre", "liter")
    single = name.lower() if len(name) > 3 else name
    for spelled in (name, single, single.removesuffix("s"), single.removesuffix("es")):
        if isinstance(getattr(units, spelled, None), units.Quantity):
            return 0, getattr(units, spelled)
    if name[0] in _PREFIXES and isinstance(getattr(units, name[1:], None), units.Quantity):
        return _PREFIXES[name[0]], getattr(units, name[1:])
    single = single.lower()
    return single.removesuffix("ies") + "y" if single.endswith("ies") else single.removesuffix("s"), None
