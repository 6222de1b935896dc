"""Several numbers that are one value: times of day, dates, ratios, and versions, which are not arithmetic."""

import re
from dataclasses import dataclass

_MONTHS = [
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
]
_MONTH = rf"(?P<name>{'|'.join(f'{month[:3]}(?:{month[3:]})?' for month in _MONTHS)}|sept)\.?"
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[0-9]{4})"
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?(?:the\s+)?"
_DATES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_YEAR}\s*[-/.年]\s*(?P<month>[0-9]{{1,2}})\s*[-/.月]\s*(?P<day>[0-9]{{1,2}})\s*[日号]?",
        r"(?P<month>[0-9]{1,2})\s*月\s*(?P<day>[0-9]{1,2})\s*[日号]",
        rf"{_YEAR}\s*年\s*(?P<month>[0-9]{{1,2}})\s*月",
        rf"{_WEEKDAY}{_MONTH}\s+{_DAY}(?:,?\s+{_YEAR})?",
        rf"{_WEEKDAY}{_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+{_YEAR})?",
        rf"{_MONTH},?\s+{_YEAR}",
        r"(?P<month>[0-9]{1,2})/(?P<day>[0-9]{1,2})/(?P<year>[0-9]{4}|[0-9]{2})",
    )
]
"""The first that fits; 5/1/2023 is May 1, and 25/1/2023 the 25th of January."""
_TIME = re.compile(
    r"(?P<part>凌晨|早上|上午|中午|下午|傍晚|晚上)?\s*(?P<hour>[0-9]{1,2})"
    r"(?:\s*(?::\s*(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2}))?|[点點时時](?:(?P<minutes>[0-9]{1,2})分?|(?P<half>半)|[整钟鐘])?))?"
    r"\s*(?P<clock>o'?\s?clock)?(?:\s*(?P<noon>[ap])\.?\s?m\.?)?(?:\s*o'?clock)?",
    re.IGNORECASE,
)
_PARTS_OF_DAY = {"凌晨": "a", "早上": "a", "上午": "a", "中午": "p", "下午": "p", "傍晚": "p", "晚上": "p"}
_VERSION = re.compile(r"[vV]?[0-9]+(?:\.[0-9]+){2,}(?:[-.]?(?:rc|a|b|alpha|beta|dev|post)\.?[0-9]*)?")
RANGE = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:-[0-9]+(?:\.[0-9]+)?)+")
"""10-15, 3-1, 555-1234: in a reference no subtraction."""


@dataclass(frozen=True, slots=True)
class Time:
    hour: int
    minute: int
    second: int
    noon: str
    """a or p for before or after noon, empty where it is not said."""
    bare: bool
    """Only the hour is said, as in 3 pm: that is the number 3 too."""


@dataclass(frozen=True, slots=True)
class Date:
    year: int | None
    month: int
    day: int | None


@dataclass(frozen=True, slots=True)
class Ratio:
    terms: tuple[str, ...]
    """As they are written; none is 0."""


def compound(plain: str) -> Time | Date | Ratio | str | None:
    """The time, date, ratio or (as its text) version that a text is."""
    for pattern in _DATES:
        if match := pattern.fullmatch(plain):
            return _date(**match.groupdict())
    if (match := _TIME.fullmatch(plain)) and (time := _time(match)):
        return time
    if _VERSION.fullmatch(plain):
        return plain.lower().removeprefix("v")
    text = re.sub(r"\s+to\s+|\s*(?:\\colon|\\mathbin\{:\}|[:∶比])\s*", ":", plain)
    terms = re.sub(r"\\(?:sqrt|frac|pi|cdot)(?![a-z])", "π", text)
    if re.fullmatch(r"[-+*/^.(){}0-9\sπ√]*[0-9}π][-+*/^.(){}0-9\sπ√]*(?::[-+*/^.(){}0-9\sπ√]+)+", terms):
        parts = tuple(part.strip() for part in text.split(":"))
        return Ratio(parts) if all(parts) and not any(re.fullmatch(r"0+(?:\.0+)?", part) for part in parts) else text
    return None


def _date(name: str = "", year: str | None = None, month: str | None = None, day: str | None = None) -> Date | None:
    number = [m[:3] for m in _MONTHS].index(name[:3].lower()) + 1 if name else int(month)
    on = int(day) if day else None
    if on and number > 12 and on <= 12:
        number, on = on, number
    full = int(year) + (2000 if len(year) == 2 else 0) if year else None
    return Date(full, number, on) if 1 <= number <= 12 and (on is None or 1 <= on <= 31) else None


def _time(match: re.Match[str]) -> Time | None:
    minute = match["minute"] or match["minutes"] or ("30" if match["half"] else "")
    marked = match["clock"] or match["noon"] or match["part"] or re.search("[点點时時]", match[0])
    hour, noon = int(match["hour"]), (match["noon"] or _PARTS_OF_DAY.get(match["part"] or "", "")).lower()
    if not (minute or marked) or hour > 24 or int(minute or 0) > 59 or int(match["second"] or 0) > 59:
        return None
    if noon and hour <= 12:
        hour = hour % 12 + (12 if noon == "p" else 0)
    return Time(hour % 24, int(minute or 0), int(match["second"] or 0), noon, not minute)


def same_time(a: Time, b: Time) -> bool:
    """2:30 is 2:30 am as well as 2:30 pm, and 14:30 is 2:30 pm only."""
    unsaid = [not time.noon and 1 <= time.hour <= 12 for time in (a, b)]
    said = [bool(time.noon) for time in (a, b)]
    either = unsaid[0] and said[1] or unsaid[1] and said[0]
    return (a.minute, a.second) == (b.minute, b.second) and (a.hour == b.hour or either and a.hour % 12 == b.hour % 12)
