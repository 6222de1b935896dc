"""Units and nouns behind a number, told from what matters there; and how many of one unit another is, for those who ask."""

import re
from functools import lru_cache
from typing import Any

import sympy
from sympy.physics import units as physics
from sympy.physics.units.systems import SI

LONGEST = 1000
"""Characters of a text that may be a number with a unit."""
TEXT = r"\\(?:text|textnormal|textbf|textrm|textit|mathrm|mathbf|mathit|mbox|unit|si|bf|rm)\s*"
# Letters at a number are variables unless they are a known unit; behind a space, words are units that do not count.
_ABBREVIATION = (
    r"(?:[mck]?m|[mk]?g|m?[lL]|ft|in|yd|mi|lbs?|oz|sq|cu|rpm|Hz|[KMGT]B|h|hrs?|s|secs?|mins?|mph|kph|kmh?|kW|cents?|dollars?|degrees?|deg|%"
    r"|inches|meters?|feet|miles?|hours?|minutes?|seconds?|days?|weeks?|months?|years?|units?|pct|percent(?:age)?)"
)
_METRIC = r"(?:[kMGTdcmunpfμµ]?(?:m|g|s|A|K|N|J|W|C|V|F|H|T|L|l|B|Pa|Hz|eV|Wh|mol|bar|cal|ohm|Ω|rad)|d[BL]|ha|fl|yr|°[CF]?)"
"""Of the sciences, with a prefix, behind a space."""
_NEAR_METRIC = r"(?:[kMG](?:Hz|N|Pa|J|W|V|A|eV|cal)|m[AVW]|[dnμµ]m|[kd]?Pa|eV|dB|[kM]?Ω)"
_CJK = r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3℃]"
_POWER = r"(?:\s?\^?\{?-?[1-4]\}?|[²³]|⁻[¹²³])?"
# Atomic: a word that can be read in two ways would double the time with each.
_UNIT_WORD = rf"(?>(?:(?:[A-Za-z]{{3,}}|{_ABBREVIATION}|{_METRIC})(?![A-Za-z])|{_CJK}+){_POWER})"
_NEAR_UNIT = rf"(?:(?:{_NEAR_METRIC}(?![A-Za-z])|(?![mghslL](?![A-Za-z])){_ABBREVIATION}(?![A-Za-z])|{_CJK}+){_POWER})"
_MORE_WORDS = rf"(?>[\s/.,·*⋅&'-]+(?:(?:[0-9]+-)?{_UNIT_WORD}|(?:of|per|in|an?)(?![A-Za-z])))*+"
_UNITS = re.compile(rf"(?P<number>.*[0-9%])(?:\s+(?P<far>{_UNIT_WORD}{_MORE_WORDS})|(?P<near>{_NEAR_UNIT}{_MORE_WORDS}))\.?")
IN_BRACKETS = rf"[(\[]\s*((?:[0-9]+-|in |per )?{_UNIT_WORD}{_MORE_WORDS})\s*[)\]]"
_NOT_UNITS = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|crore|lakh|dozen|score|half|halves|quarters?|and|or|to|not?|is|are|was|pi|sqrt"
    r"|times|minus|plus|over|divided|multiplied|squared|cubed|factorial|mod|sin|cos|tan|log|ln|exp|wrong|incorrect|maybe|if|for"
    r"|thirds?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?|bn|mn|tn|where|remainder|base"
    r"|[ap]\.?\s?m|clock|more|less|fewer|least|most|than|above|below|under)s?\b"
    r"|[十百千万亿半加减乘除或至到]|分之|以上|以下|多|余|几|次方|^\s*(?:成|折|打)$|^\s*[角棱边面的]\w",
    re.IGNORECASE,
)
_CJK_UNITS = re.compile("千克|千米|千瓦|千卡|千焦|百米")
"""Units that begin as a number does."""
SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "mn": 10**6, "billion": 10**9, "bn": 10**9,
    "trillion": 10**12, "tn": 10**12, "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
_SCALED_UNITS = re.compile(rf"(\d\s*(?:{'|'.join(SCALES)})s?)\s+[A-Za-z]{{3,}}(?:\s+[A-Za-z]+)*\s*$", re.IGNORECASE)
_DRESSED = (
    rf"(?:{TEXT}\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|\\Omega|\\mu(?=\s*(?:{TEXT}|[A-Za-z]))|\\%)(?:\s*\^\s*\{{?-?[1-4]\}}?)?"
)
_BETWEEN = r"(?:[\s/*·.]|\\cdot(?![a-z])|\\times(?![a-z]))*"
_DRESSED_UNITS = re.compile(
    rf"(?P<left>.*?(?:[0-9}})]|\\pi|(?<![A-Za-z\\])[a-zA-Z])\s*)(?P<units>{_DRESSED}(?:{_BETWEEN}{_DRESSED})*)\s*\.?", re.DOTALL
)
_DRESSED_WORDS = re.compile(r"\{[\s~]*(?:[0-9]+-)?[^\W\d_][^{}=<>_]*(?:\{[^{}]*\}[^{}=<>_]*)*\}|\\(?:Omega|mu|%)")
_SYMBOL = re.compile(r"\\(?:mathrm|mathit|rm)\s*\{\s*[^NJKWVAFTHCLmgsh\s]\s*\}|\\(?:mathbf|bf)\s*\{\s*\w\s*\}")
"""The numbers e and i, a variable or a vector, which are written in such letters too."""

CURRENCIES = {r"\$": "dollar", "US$": "dollar", "$": "dollar", "€": "euro", "£": "gbp", "¥": "yuan", "RMB": "yuan"}
_NAMES = {
    "元": "yuan", "块": "yuan", "米": "m", "厘米": "cm", "毫米": "mm", "千米": "km", "公里": "km", "克": "g", "千克": "kg",
    "公斤": "kg", "升": "l", "毫升": "ml", "秒": "s", "分钟": "minute", "小时": "hour", "天": "day", "年": "year",
    "度": "degree", "Ω": "ohm", "L": "l", "mL": "ml", "℃": "celsius", "feet": "ft", "in": "inch", "inches": "inch",
    "hr": "hour", "hrs": "hour", "min": "minute", "sec": "s", "lb": "pound", "lbs": "pound", "people": "person",
    "children": "child",
}  # fmt: skip
_PREFIXES = {"n": -9, "μ": -6, "µ": -6, "m": -3, "k": 3, "M": 6, "G": 9}
_PART = re.compile(r"(/|每|\bper\s)?[\s.·*,]*(square|sq|平方|cubic|cu|立方)?\s*\.?\s*([^\W\d_]+)(?:\s*\^?\{?(-?[1-4])\}?)?")
_POWERS = {"": 1, "square": 2, "sq": 2, "平方": 2, "cubic": 3, "cu": 3, "立方": 3}


def without_units(text: str) -> str:
    """A number without the units behind it; the text itself where what stands there changes the value."""
    if len(text) > LONGEST:
        return text
    text = _SCALED_UNITS.sub(r"\1", _CJK_UNITS.sub("升", text))
    units = _UNITS.fullmatch(text)
    words = (units["far"] or units["near"]) if units else ""
    counts = changes(words) or words.startswith(("percent", "pct", "%"))
    return units["number"] if units and words and not counts else text


def changes(words: str) -> bool:
    """Whether words beside a number change its value, as "squared" does."""
    return bool(_NOT_UNITS.search(words))


def without_dressed_units(latex: str) -> str:
    """A formula without units in \\text{} behind it."""
    units = _DRESSED_UNITS.fullmatch(latex) if len(latex) <= LONGEST else None
    if not units or changes(re.sub(r"\\[A-Za-z]+", " ", units["units"])):
        return latex
    parts = re.findall(_DRESSED, units["units"])
    known = all(_DRESSED_WORDS.search(part) and not _SYMBOL.match(part) for part in parts)
    return units["left"] if known else latex


def conversion(wanted: str, found: str) -> sympy.Expr | None:
    """How many of the wanted unit one of the unit found is; None where they measure something else."""
    (scale, measured), (other, of) = _scaled(wanted), _scaled(found)
    return other / scale if measured == of else None


@lru_cache(maxsize=4096)
def _scaled(text: str) -> tuple[sympy.Expr, frozenset]:
    """A unit in SI units: the factor, and the power of each dimension or, for what is counted, of its name."""
    scale, measured = sympy.Integer(1), {}
    system: Any = SI.get_dimension_system()
    for over, raised, name, power in _PART.findall(text):
        times = int(power or 1) * _POWERS[raised] * (-1 if over else 1)
        factor, quantity = _quantity(name)
        if quantity is None:
            measured[factor] = measured.get(factor, 0) + times
            continue
        scale *= (sympy.Integer(10) ** factor * SI.get_quantity_scale_factor(quantity)) ** times
        dimensions = system.get_dimensional_dependencies(SI.get_quantity_dimension(quantity))
        for dimension, of in dimensions.items():
            measured[str(dimension.name)] = measured.get(str(dimension.name), 0) + of * times
    return scale, frozenset((name, power) for name, power in measured.items() if power)


def _quantity(name: str) -> tuple[int | str, sympy.Expr | None]:
    """The power of ten and the unit that a name stands for; the name itself, in the singular, and None where it is no unit."""
    name = _NAMES.get(name, name).replace("metre", "meter").replace("litre", "liter")
    single = name.lower() if len(name) > 3 else name
    for spelled in (name, single, single.removesuffix("s"), single.removesuffix("es")):
        if isinstance(getattr(physics, spelled, None), physics.Quantity):
            return 0, getattr(physics, spelled)
    if name[0] in _PREFIXES and isinstance(getattr(physics, name[1:], None), physics.Quantity):
        return _PREFIXES[name[0]], getattr(physics, name[1:])
    single = single.lower()
    return single.removesuffix("ies") + "y" if single.endswith("ies") else single.removesuffix("s"), None
