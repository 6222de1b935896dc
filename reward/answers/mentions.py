"""Numbers in running text, each with the words that change it; numbers of steps, equations and lists are none."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from reward.answers.normalise import plain_characters
from reward.answers.phrases import BEFORE, BEHIND, LABELS, PLAIN_COMMANDS, any_of
from reward.answers.rules import DEGREES, FUNCTIONS
from reward.answers.units import SCALES, without_units
from reward.answers.values import UNSIGNED

MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_DAY = r"[0-9]{1,2}(?:st|nd|rd|th)?"
# A minus after a letter, a digit or a bracket subtracts.
_NUMBER = (
    rf"(?:(?<![A-Za-z0-9)\]])[-+])?[$€£¥]?(?:(?:{MONTH}\s+{_DAY}|{_DAY}\s+(?:of\s+)?{MONTH})(?:,?\s+[0-9]{{4}})?"
    r"|[0-9]+\s+[0-9]+/[0-9]+|[0-9]+(?:\.[0-9]+)*:[0-9]+(?::[0-9]+)*|[0-9]+/[0-9]+/[0-9]+"
    rf"|[0-9]+(?:\.[0-9]+)?(?:-[0-9]+(?:\.[0-9]+)?)+(?![0-9]|\.[0-9]|\s*=)|[vV]?[0-9]+(?:\.[0-9]+){{2,}}|(?:{UNSIGNED})(?:/[0-9]+)?%?)"
)
_BEFORE = (
    r"(?:(?i:\b(?:at (?:least|most)|no (?:more|less|fewer|other) than|(?:more|less|fewer|greater|bigger|larger|smaller|higher"
    r"|lower) than(?: or equal to)?|up to|over|under|above|below|nearly|almost|just (?:over|under)|exceed(?:s|ing)?|negative"
    r"|minus|moins|menos|plus or minus|twice|double|triple|thrice|divisible by|between|either|(?:a |one |the )?(?:half|minimum"
    r"|maximum|(?:half|third|quarter|fourth|fifth|tenth|percent|(?:(?:square|cube|fourth) )?root|square|cube|reciprocal|inverse"
    r"|negative|opposite|additive inverse|factorial|logarithm|minimum|maximum|multiples?) of))\s+(?:the\s+|about\s+)?)"
    r"|至少|至多|最多|最少|不少于|不多于|不超过|不到|不足|超过|大于|小于|多于|少于|低于|高于|将近|接近|不是|正负|负|根号|√\s*"
    r"|(?:(?<![<>=-])[<>≤≥≠±]=?|\\(?:leq?|geq?|lt|gt|neq?|pm)(?![a-z]))\s*)"
)
_PART = "half|halves|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s?"
_BEHIND = (
    rf"(?:\s*(?i:and (?:an? |one |two |three |four )?(?:{_PART})|(?:{'|'.join(SCALES)})s?|squared|cubed|factorial|(?:{_PART})"
    r"|or (?:more|less|fewer|greater|higher|lower|above|below|so)|and (?:above|below|up|over)|at (?:least|most)|to the (?:power"
    r"|[0-9]+(?:th|nd|rd)|[a-z]+ power)[^.,;]{0,20}|(?:times|plus|minus|over|divided by|multiplied by) [0-9.]+|o'?clock"
    r"|[ap]\.?\s?m\b\.?)(?![A-Za-z])|\s*(?:\^\s*(?:\{[^{}]*\}|-?[0-9]+)|[⁰¹²³⁴-⁹]+|_\{?[0-9]+\}?|!(?![=\s]|\Z)|[十百千万亿]+"
    r"|[个只倍元米岁]?(?:半|[多余](?![少边项面数元样]))|几|[角棱边面维][\u4e00-\u9fff]|以上|以下|以内"
    r"|左右?分之[0-9一二三四五六七八九十百]+|的(?:算术)?(?:平方根?|立方根?|[0-9]+次方|一半|倒数)|次方|[成折](?![\u4e00-\u9fff])"
    r"|\+(?![\s0-9])|-?ish\b)| and [0-9]+/[0-9]+)"
)
_GROUP = r"\{(?:[^{}\n]|\{(?:[^{}\n]|\{[^{}\n]*+\})*+\})*+\}"
_COMMAND = (
    rf"(?:(?<!\\)\\|\\\\(?=[dt]?frac|sqrt))(?!(?:{PLAIN_COMMANDS}|cdot|times|div)(?![A-Za-z]))[A-Za-z]++"
    rf"(?:[ \t]*(?:{_GROUP}|\[[^\[\]\n]*+\]|[0-9]++|[_^](?:{_GROUP}|\w)))*+"
)
_UNIT_LETTER = r"(?<=[0-9])[mghslL](?=[ \t]+(?:of|per|from|in|long|tall|away|left)\b)"
_LETTER = rf"(?![ap]\.?\s?m\b)(?!{_UNIT_LETTER})(?![A-Z][ \t]+-)(?!(?:a|A|I)[ \t]+[A-Za-z]{{2}})[A-Za-z](?![A-Za-z])'*"
_BRACKET = r"\((?:[^()A-Za-z\n]|\\[A-Za-z]+|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))*+\)"
_RAISED = rf"(?:{DEGREES}|\^[ \t]*(?:{_GROUP}|-?[0-9]+(?:\.[0-9]+)?|-?{_LETTER}|{_COMMAND}|{_BRACKET})|_(?:{_GROUP}|\w))"
_TERM = rf"(?:{_NUMBER}|{_COMMAND}|(?<![A-Za-z])\\?(?:{FUNCTIONS}|pi)(?![A-Za-z])(?:{_BRACKET})?|{_LETTER}){_RAISED}*+"
# Between spaces on both sides or on neither, so that a list's or a bold number's stars are none.
_OPERATOR = r"[ \t]*(?:[-+/×÷·]|\\(?:cdot|times|div|pm)(?![a-z]))[ \t]*|\*\*?(?![ \t*])|[ \t]+(?:\*|x(?=[ \t]+\$?[0-9]))[ \t]+"
_NEXT = rf"(?:(?:{_OPERATOR}|(?![0-9](?<=[A-Za-z].)))(?:{_TERM}|{_BRACKET}{_RAISED}*+)|[ \t]+{_COMMAND})"
_FOUND = re.compile(
    rf"(?<![A-Za-z0-9_^])(?!(?<=[\\'’])[A-Za-z])(?<![_^]\{{)(?<![0-9a-z]\.)(?:(?:(?<![A-Za-z0-9)\]}}])[-+])?{_TERM}|{_BRACKET}(?=[-+/^*×÷·]))(?:{_NEXT})*+"
)
_SMALL = re.compile(rf"[_^][ \t]*(?:{_GROUP}|-?\w+)")
_LETTERS = re.compile(r"[A-Za-z]++")
_UNIT = re.compile(rf"[A-Z][a-z](?![A-Za-z])|{_UNIT_LETTER}")
_PLACE = re.compile(r"(?<!=)(?<!= )[0-9,]*(?:1st|2nd|3rd|[0-9]th)|[0-9]+\^\{(?:\\[a-z]+\{)?(?:st|nd|rd|th)\}+")
_LEFT = re.compile(rf"(?:{_BEFORE}|{any_of(BEFORE)})+\Z")
_RIGHT = re.compile(rf"(?:{_BEHIND}|{any_of(BEHIND)})+")
_SEVERAL = re.compile(r",?\s+(?:or|and|nor)\s+|\s[A-Za-z]+,?\s+or\s+")
_LABEL = re.compile(
    r"(?i:(?<![A-Za-z])(?:steps?|notes?|figures?|fig\.|tables?|equations?|eqs?\.?|questions?|q\.?|problems?|cases?|parts?"
    r"|sections?|chapters?|examples?|exercises?|tasks?|solutions?|phases?|stages?|iterations?|rules?|items?|rows?|claims?"
    r"|remarks?|theorems?|lemmas?|corollary|propositions?|definitions?|lines?|footnotes?|appendix|hints?|methods?|approach"
    r"|pasos?|étapes?|passo|schritt|шаг)(?:\s+no\.?|\s+number)?[\s#:-]*[(\[]?[0-9]+(?:\.[0-9]+)*[a-z]?[)\]]?(?![0-9])(?:\s*(?:,"
    r"|-|–|and|to)\s*\(?[0-9]+\)?(?=[\s:.)]|\Z))*)|第\s*[0-9]+\s*(?:步|题|问|行|章|节|条)|(?:步骤|问题|方法|情况|公式|方程|式"
    r"|图|表|注|例|题|ステップ|단계)\s*[(（]?[0-9]+[)）]?|(?i:(?<![A-Za-z])(?:from|by|using|in|into|with|see|of"
    r"|and))\s+[(\[][0-9]{1,2}[)\]](?:\s*(?:,|and)\s*[(\[][0-9]{1,2}[)\]])*|(?:由|将|把|代入)\s*[(（][0-9][)）]"
)
_ITEM = re.compile(
    r"(?:(?<=\n)|\A|(?<=[.!?。；;:：]\s))[ \t>*#-]*(?:([0-9]{1,2})[.)、:：]|[(（]([0-9]{1,2})[)）])(?=\s|\*|\Z|[\u4e00-\u9fff])"
)
_LETTERED = re.compile(r"^[ \t]*\(?([ab])[.)]", re.MULTILINE)
_IN_A_LINE = re.compile(r"^[ \t]*(?<![0-9])1[.)][ \t]+[A-Z][^0-9\n]*[ \t]2[.)][ \t]+[A-Z][^0-9\n]*[ \t]3[.)].*$", re.MULTILINE)
_SERIES = re.compile(rf"{any_of(LABELS)}|(?<![A-Za-z])(?:RMB|USD|EUR|GBP|CNY|Rs)(?=\.?[0-9])")


class Mention(NamedTuple):
    text: str
    end: int


def mentions(text: str) -> Iterator[Mention]:
    """Every number of a text, with the mathematics and the words at it that change its value; several numbers in a row between
    which there is "or" or "and" are one."""
    text = _without_items(_SERIES.sub(_blank, _LABEL.sub(_blank, plain_characters(text))))
    spans: list[tuple[int, int]] = []
    end = 0
    for found in _FOUND.finditer(text):
        stop = _end(text, found) if found.start() >= end else 0
        if not stop:
            continue
        left = _LEFT.search(text[max(end, found.start() - 60) : found.start()])
        begin = found.start() - len(left[0]) if left else found.start()
        right = _RIGHT.match(text, stop)
        # The same may be said twice, as in 0.6 or 60%.
        joined = _SEVERAL.fullmatch(text, end, begin) and found[0].endswith("%") <= text[:end].endswith("%")
        begin, end = spans.pop()[0] if spans and joined else begin, right.end() if right else stop
        spans.append((begin, end))
    yield from (Mention(text[begin:end].strip(), end) for begin, end in spans)


def _end(text: str, found: re.Match[str]) -> int:
    """Where what was found ends, with letters at it that are no unit; 0 where it is no number: letters, or a rank in a row."""
    letters = _LETTERS.match(text, found.end())
    end = letters.end() if letters else found.end()
    if not re.search("[0-9]", _SMALL.sub("", found[0])) or _PLACE.fullmatch(text, found.start(), end):
        return 0
    word = letters and (
        len(letters[0]) > 3 or _UNIT.match(text, found.end()) or without_units(text[found.start() : end]) == found[0]
    )
    return found.end() if word or _RIGHT.match(text, found.end()) else end


def _without_items(text: str) -> str:
    """Without the numbers of a list: the first that has text behind it, those that go on from another, those of one line that
    begins with 1, and those in a list of letters."""
    text = _IN_A_LINE.sub(lambda line: re.sub(r"(?<!\S)[0-9]{1,2}[.)](?!\S)", _blank, line[0]), text)
    found = list(_ITEM.finditer(text))
    numbers = {int(item[1] or item[2]) for item in found}
    lettered = len(set(_LETTERED.findall(text))) > 1
    for item in found:
        number = int(item[1] or item[2])
        begins = number == 1 and text[item.end() :].strip()
        if begins or lettered or {number - 1, number + 1} & numbers:
            text = text[: item.start()] + _blank(item) + text[item.end() :]
    return text


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])
