"""Units and nouns behind a number, which do not matter for its value, told from what does matter there."""

import re

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
SCALES = {"dozen": 12, "hundred": 100, "lakh": 10**5, "crore": 10**7} | {
    name: 10**power
    for power, names in ((3, "thousand"), (6, "million mn"), (9, "billion bn"), (12, "trillion tn"))
    for name in names.split()
}
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


LONGEST = 1000
"""Characters of a text that may be a number with a unit."""


def without_units(text: str) -> str:
    """A number without the units behind it; the text itself where what stands there changes the value."""
    if len(text) > LONGEST:
        return text
    text = _SCALED_UNITS.sub(r"\1", _CJK_UNITS.sub("升", text))
    units = _UNITS.fullmatch(text)
    words = (units["far"] or units["near"]) if units else ""
    counts = _NOT_UNITS.search(words) or words.startswith(("percent", "pct", "%"))
    return units["number"] if words and not counts else text


def changes(words: str) -> bool:
    """Whether words beside a number change its value, as "squared" does."""
    return bool(_NOT_UNITS.search(words))


def without_dressed_units(latex: str) -> str:
    """A formula without units in \\text{} behind it."""
    units = _DRESSED_UNITS.fullmatch(latex) if len(latex) <= LONGEST else None
    if not units or _NOT_UNITS.search(re.sub(r"\\[A-Za-z]+", " ", units["units"])):
        return latex
    parts = re.findall(_DRESSED, units["units"])
    known = all(_DRESSED_WORDS.search(part) and not _SYMBOL.match(part) for part in parts)
    return units["left"] if known and units["left"].strip() else latex
