"""Units and nouns behind a number, which do not matter for its value, told from what does matter there."""

import re

TEXT = r"\\(?:text|textnormal|textbf|textrm|textit|mathrm|mathbf|mathit|mbox|bf|rm)\s*"
# Letters at a number are variables unless they are a known unit; behind a space, words are units that do not count.
_ABBREVIATION = (
    r"(?:[mck]?m|[mk]?g|m?[lL]|ft|in|yd|mi|lbs?|oz|sq|cu|rpm|Hz|[KMGT]B|h|hrs?|s|secs?|mins?|mph|kph|kmh?|kW|am|pm|cents?|dollars?|degrees?|deg|%"
    r"|inches|meters?|feet|miles?|hours?|minutes?|seconds?|days?|weeks?|months?|years?|units?|pct|percent(?:age)?)"
)
_CJK = r"[\u3040-\u30ff\u4e00-\u9fff℃]"
_POWER = r"(?:\s?\^?\{?[23]\}?|²|³)?"
_UNIT_WORD = rf"(?:(?:[A-Za-z]{{3,}}|{_ABBREVIATION}|[gmshL]|{_CJK}+){_POWER})"
_NEAR_UNIT = rf"(?:(?:(?![mghslL](?![A-Za-z])){_ABBREVIATION}(?![A-Za-z])|{_CJK}+){_POWER})"
_UNITS = re.compile(
    rf"(?P<number>.*[0-9%])(?:\s+(?P<far>{_UNIT_WORD}(?:[\s/.·-]+{_UNIT_WORD})*)"
    rf"|(?P<near>{_NEAR_UNIT}(?:[\s/.·-]+{_UNIT_WORD})*))"
)
_NOT_UNITS = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|crore|lakh|dozen|score|half|halves|quarters?|and|or|to|not?|is|are|was|pi|sqrt"
    r"|times|minus|plus|over|divided|multiplied|squared|cubed|factorial|mod|sin|cos|tan|log|ln|exp|wrong|incorrect|maybe"
    r"|thirds?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?|bn|mn|tn)s?\b"
    r"|[十百千万亿半加减乘除或至到]|分之|以上|以下|多|余|几",
    re.IGNORECASE,
)
_CJK_UNITS = re.compile("千克|千米|千瓦|千卡")
"""Units that begin as a number does."""
_SCALED_UNITS = re.compile(r"(\d\s*(?:thousand|million|billion|trillion))\s+[A-Za-z]{3,}(?:\s+[A-Za-z]+)*\s*$", re.IGNORECASE)
_DRESSED_UNITS = re.compile(
    rf"(?P<left>.*(?:[0-9}})]|\\pi)\s*){TEXT}\{{\s*{_UNIT_WORD}(?:[\s/.·-]+{_UNIT_WORD})*\s*\.?\s*\}}(?:\^\{{?[23]\}}?)?"
)


def without_units(text: str) -> str:
    """A number without the units behind it; the text itself where what stands there changes the value."""
    text = _SCALED_UNITS.sub(r"\1", _CJK_UNITS.sub("升", text))
    units = _UNITS.fullmatch(text)
    words = (units["far"] or units["near"]) if units else ""
    counts = _NOT_UNITS.search(words) or words.startswith(("percent", "pct", "%"))
    return units["number"] if words and not counts else text


def without_dressed_units(latex: str) -> str:
    """A formula without units in \\text{} behind it."""
    units = _DRESSED_UNITS.fullmatch(latex)
    return units["left"] if units and not _NOT_UNITS.search(latex[units.end("left") :]) else latex
