"""Notations with a meaning of their own: options of a multiple choice, times of day, dates, ratios, and versions."""

import re
from dataclasses import dataclass

from reward.answers.rules import RATIO
from reward.answers.units import LONGEST, TEXT

_LETTER = "[A-J]"
_WORD = r"(?i:(?:options?|choices?|statements?|the\s+letter|选项|选择|选)\s*[:：]?\s*)?"
_TRUE = r"(?i:(?:is|are)\s+(?:the\s+)?(?:correct|right|best|true)(?:\s+(?:one|option|choice|answer)s?)?)"
_BEHIND = rf"\s*(?:选?项|(?i:options?|choices?))?\s*(?:正确|对|{_TRUE})?"
_BARE = rf"[(\[{{<【\"“'‘`]?\s*({_LETTER})\s*[)\]}}>】\"”'’`]?"
_ONE = re.compile(rf"{_WORD}{_BARE}\s*[.．、:：]?{_BEHIND}")
_SMALL = re.compile(r"""^(?i:option|choice|the\s+letter)\s*[:：]?\s*[(\["“'‘`]?[a-j](?![A-Za-z])""")
_AROUND = re.compile(rf"^{_WORD}|{_BEHIND}$")
_SEPARATOR = re.compile(r"[\s,，、;；&()\[\]]|\band\b|和|与|及")
_LABEL = re.compile(
    rf"{_WORD}(?:[(\[]\s*(?P<bracketed>{_LETTER})\s*[)\]]\s*[.:：、]?|(?P<plain>{_LETTER})"
    r"(?:(?P<mark>[)）、．：]|\.(?![a-z])|:(?=\s|[0-9\\$-])|(?=\s+\())|\s+[-–—](?=\s+[A-Z\u4e00-\u9fff])))\s*(?P<content>\S.*)",
    re.DOTALL,
)
_NAMED = re.compile(rf"(?P<content>[^.;:()]*[A-Za-z]{{3,}})\s+\(({_LETTER})\)")
_ABOUT = r"(?:is|are|was|were|can|cannot|could|would|does|do|has|have|fails?|seems?|contradicts?)\b|[不错是]"
"""A sentence about an option is no label."""
_LISTED = re.compile(rf"[,;，；、]\s*(?:[(\[]\s*({_LETTER})\s*[)\]]|({_LETTER})[.)．:：])\s*(?=\S)(?!{_ABOUT})")
"""Behind a comma a label is one however it is written."""

_MONTH = (
    r"(?P<name>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
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
class Choice:
    letters: str
    """In alphabetical order."""
    content: str
    """What a single one stands for, where that is said."""


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


def choice(text: str) -> Choice | None:
    """The option that an answer names, or the options: where others are labelled behind the first, all of them."""
    if len(text) > LONGEST or not re.search("[A-Ja-j]", text):
        return None
    text = re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r"\1", text).replace("*", "").strip()
    text = _SMALL.sub(lambda match: match[0].upper(), text)
    if one := _ONE.fullmatch(text):
        return Choice(one[1], "")
    parts = _SEPARATOR.sub(" ", _AROUND.sub("", text)).split()
    if parts and all(re.fullmatch(f"{_LETTER}+", part) for part in parts):
        joined = "".join(parts)
        # Letters side by side are options in alphabetical order only: AB, not BA.
        ordered = all("".join(sorted(part)) == part for part in parts)
        return Choice("".join(sorted(joined)), "") if ordered and len(set(joined)) == len(joined) > 1 else None
    if named := _NAMED.fullmatch(text):
        return Choice(named[2], named["content"])
    label = _LABEL.fullmatch(text)
    if label is None:
        return None
    first, content = label["bracketed"] or label["plain"], label["content"].strip()
    style = rf"[(\[]\s*({_LETTER})\s*[)\]]" if label["bracketed"] else rf"({_LETTER}){re.escape(label['mark'] or '.')}"
    others = re.findall(rf"(?:(?<=[\s,;，；。.])|(?<=[\u4e00-\u9fff])){style}\s*(?=\S)(?!{_ABOUT})", content)
    others += map("".join, _LISTED.findall(content))
    letters = sorted({first, *others})
    return Choice("".join(letters), content if len(letters) == 1 else "")


def compound(plain: str) -> Time | Date | Ratio | str | None:
    """The time, date, ratio or (as its text) version that a text is."""
    for pattern in _DATES:
        if match := pattern.fullmatch(plain):
            return _date(**match.groupdict())
    if (match := _TIME.fullmatch(plain)) and (time := _time(match)):
        return time
    if _VERSION.fullmatch(plain):
        return plain.lower().removeprefix("v")
    text = RATIO(plain)
    terms = re.sub(r"\\(?:sqrt|frac|pi|cdot)(?![a-z])", "π", text)
    if re.fullmatch(r"[-+*/^.(){}0-9\sπ√]*[0-9}π][-+*/^.(){}0-9\sπ√]*(?::[-+*/^.(){}0-9\sπ√]+)+", terms):
        parts = tuple(part.strip() for part in text.split(":"))
        return Ratio(parts) if all(parts) and not any(re.fullmatch(r"0+(?:\.0+)?", part) for part in parts) else text
    return None


def _date(name: str = "", year: str | None = None, month: str | None = None, day: str | None = None) -> Date | None:
    number = "janfebmaraprmayjunjulaugsepoctnovdec".index(name[:3].lower()) // 3 + 1 if name else int(month or 0)
    on = int(day) if day else None
    number, on = (on, number) if on and on <= 12 < number else (number, on)
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
    either = any(not x.noon and 1 <= x.hour <= 12 and y.noon for x, y in ((a, b), (b, a)))
    return (a.minute, a.second) == (b.minute, b.second) and (a.hour == b.hour or either and a.hour % 12 == b.hour % 12)
