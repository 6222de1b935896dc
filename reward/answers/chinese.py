"""Numbers in Chinese characters: 一百零五, 三点五, 三分之一, 百分之二十, 3.5万, 三个半.

Behind one stands a unit or a measure word with what it counts, and nothing else: 三个苹果 is 3 and 三棱柱 a word.
"""

import math
import re
from fractions import Fraction
from typing import Literal

LONGEST_NUMERAL = 60
_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_POWERS = {"亿": 10**8, "万": 10**4, "千": 1000, "百": 100, "十": 10}
_NUMERAL = "零〇一二两兩三四五六七八九十百千万亿点负"
_NOUN = rf"[^\W{_NUMERAL}0-9_半余来几]"
_COUNTERS = (
    "个個只隻条張张本支枝把件台辆輛棵朵颗粒块塊片头匹名双套组箱盒袋包瓶杯桶"
    "罐碗盘篮筐束串堆间座栋幢所艘架扇顶根株页頁题道句首封份幅枚盏种位人"
)
"""Measure words behind which the noun may stand; 位数 is none, as in 三位数."""
_LENGTH = "(?:平方|立方)?(?:千|分|厘|毫|微|纳|海|英|公)?(?:米|里|尺|寸|丈|分|升|斤|顷|亩|吨|克|两)"
_WHOLE_UNITS = (
    f"{_LENGTH}|钱|公斤|英寸|英尺|英里|加仑|磅|盎司|元|块钱|角|毛|美元|美金|欧元|英镑|日元|人民币|元钱|美分|小时"
    f"|个小时|分钟|秒钟?|刻钟?|天|日|周|星期|个月|月份?|年|岁|世纪"
    "|时|点钟|度|摄氏度|华氏度|弧度|伏特?|安培?|瓦特?|千瓦|千瓦时|焦耳?|牛顿?|帕斯卡?|赫兹?|欧姆|摩尔|次|倍|层|楼"
    "|面|部|门|家|项|节|段|行|列|排|对|场|轮|局|届|期|步|圈|遍|趟|回|下|声"
    "|类|款|级|号|班|股|幕|章|集|篇|卷|册|滴|口|尊|代|队|伙|批|群|帮|户|席|桌|床|车|船|笔|则"
)
_UNIT = rf"(?:每?(?:{_WHOLE_UNITS})(?:[/每](?:{_WHOLE_UNITS}|[{_COUNTERS}]))*|[{_COUNTERS}](?![数角体形]){_NOUN}{{0,6}}|)"
# 三四 is three or four, and 百 alone no number.
_PLAIN = re.compile(
    rf"(?![一二两三四五六七八九]{{2}}(?![{_NUMERAL}])|[百千万亿](?![{_NUMERAL}]))([{_NUMERAL}]+?)({_UNIT})(半?)"
)
_MIXED = re.compile(rf"(负?)(?:([{_NUMERAL}0-9]+)又)?([{_NUMERAL}0-9]+)分之([{_NUMERAL}0-9.]+){_UNIT}")
_SCALED = re.compile(rf"([-+]?[0-9]+(?:\.[0-9]+)?)\s*(万亿|[万亿]){_UNIT}")


def chinese_number(text: str) -> tuple[Fraction, Literal["%", "1"]] | None:
    """The number that a text is, a unit behind it or not, and whether it is per cent (%) or plain (1)."""
    if len(text) > LONGEST_NUMERAL:
        return None
    if match := _SCALED.fullmatch(text):
        return Fraction(match[1]) * math.prod(_POWERS[character] for character in match[2]), "1"
    if match := _MIXED.fullmatch(text):
        whole, bottom, top = (_number(part) if part else Fraction(0) for part in match.groups()[1:])
        if whole is None or top is None or not bottom:
            return None
        percent = match[3] == "百"
        return (whole + top / (1 if percent else bottom)) * (-1 if match[1] else 1), "%" if percent else "1"
    if text in ("半", "一半"):
        return Fraction(1, 2), "1"
    match = _PLAIN.fullmatch(text)
    value = _number(match[1]) if match and (match[2] or not match[3]) else None
    return (value + Fraction(len(match[3]), 2), "1") if match and value is not None else None


def _number(text: str) -> Fraction | None:
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text):
        return Fraction(text)
    whole, point, decimals = text.removeprefix("负").partition("点")
    value, tail = _integer(whole), "".join(str(_DIGITS.get(c, " ")) for c in decimals)
    if value is None or point and not tail.isdigit():
        return None
    return (-1 if text.startswith("负") else 1) * Fraction(f"{value}.{tail or 0}")


def _integer(text: str) -> int | None:
    """一万零五十, 一百五 and 二〇二四 alike; None where the characters make no number."""
    if text and _DIGITS.keys() >= set(text):
        return int("".join(str(_DIGITS[c]) for c in text))
    power = next((power for power in _POWERS if power in text), None)
    if power is None:
        return None
    before, _, behind = text.rpartition(power)
    many, rest = _integer(before) if before.strip("零〇") else 1, _integer(behind) if behind else 0
    if many is None or rest is None or power in "千百十" and many > 9:
        return None
    # 一百五 is 150: a last digit without a power takes the next one.
    short = _POWERS[power] // 10 if len(behind) == 1 and power != "十" else 1
    return many * _POWERS[power] + rest * short
