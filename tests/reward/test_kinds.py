"""Kinds of outputs that were judged wrongly, each with answers that are right and answers that are wrong: (output, gold)."""

from reward.judging.rule import judge

COMPOUND_RIGHT = [
    (r"\boxed{12:00}", "12:00"), ("The answer is 7:45.", "7:45"), ("It starts at 9:15 AM.", "9:15 AM"),
    ("The answer is 21:15.", "9:15 PM"), ("The answer is 9:15 p.m.", "21:15"), ("The answer is 9:15pm", "9:15 P.M."),
    (r"\boxed{09:15}", "9:15"), (r"\boxed{12:30 AM}", "0:30"), (r"\boxed{12:00 PM}", "12:00"),
    (r"\boxed{20:34}", "20:34:00"), (r"\boxed{4:6}", "2:3"), (r"\boxed{2:4:6}", "1:2:3"), (r"\boxed{2 : 3}", "2:3"),
    (r"\boxed{\text{2:3}}", "2:3"), (r"\boxed{2∶3}", "4∶6"), ("比是3：2。", "3:2"),
    (r"\boxed{1:\sqrt{3}:2}", r"2:2\sqrt{3}:4"), (r"\boxed{2023-05-01}", "2023-05-01"),
    ("The answer is May 1, 2023.", "2023-05-01"), ("The date is 2023/5/1.", "2023-05-01"),
    ("答案是2023年5月1日。", "2023-05-01"), ("The answer is 1 May 2023.", "May 1, 2023"),
    ("The answer is June 5th.", "June 5"), ("5月1日", "5月1日"), (r"\boxed{1.2.3}", "1.2.3"),
    ("The version is v2.10.0.", "2.10.0"), (r"\boxed{10-15}", "10-15"), (r"\boxed{3/4/2024}", "3/4/2024"),
    ("555-1234", "555-1234"), ("3 o'clock", "3:00"), ("The answer is 3 o'clock.", "3:00"), ("下午2:30", "14:30"),
    ("14时30分", "14:30"), ("#### 8:05", "8:05"), ("The train arrives at 8:05.", "8:05"),
    ("The ratio of cats to dogs is 6:4.", "3:2"), ("The answer is 2:30 PM", "2:30"), (r"\boxed{2\!:\!3}", "2:3"),
    (r"\boxed{3 \text{ to } 2}", "3:2"), ("192.168.1.1", "192.168.1.1"), (r"\boxed{noon}", "12:00 PM"),
    ("The answer is 12/25/2024", "12/25/2024"), ("The answer is 25 December 2024", "December 25, 2024"),
]  # fmt: skip
COMPOUND_WRONG = [
    (r"\boxed{11:00}", "12:00"), ("The answer is 7:45.", "7:46"), (r"\boxed{7:45}", "15:30"),
    ("It starts at 9:15 AM.", "9:15 PM"), (r"\boxed{12:30 PM}", "0:30"), (r"\boxed{20:34:10}", "20:34:00"),
    (r"\boxed{3:2}", "2:3"), (r"\boxed{2:4:7}", "1:2:3"), (r"\boxed{1:\sqrt{3}:2}", r"1:\sqrt{2}:2"),
    (r"\boxed{0:0}", "1:1"), (r"\boxed{5:0}", "3:0"), (r"\boxed{2017}", "2023-05-01"),
    (r"\boxed{2023-04-02}", "2023-05-01"), ("The answer is May 2, 2023.", "2023-05-01"),
    ("The answer is June 6.", "June 5"), ("5月2日", "5月1日"), (r"\boxed{1.2.4}", "1.2.3"), (r"\boxed{1.3.2}", "1.2.3"),
    ("2.1.0", "2.10.0"), (r"\boxed{10-15}", "5-10"), (r"\boxed{3-1}", "2-0"), (r"\boxed{6/8/2024}", "3/4/2024"),
    ("556-1235", "555-1234"), (r"\boxed{\frac{1}{0}}", "12:00"), (r"\boxed{\frac{2}{0}}", "5"),
    ("The answer is 4 o'clock.", "3:00"), ("#### 8:50", "8:05"), ("192.168.1.10", "192.168.1.1"), (r"\boxed{1:30}", "1.5"),
    (r"\boxed{2:00}", "2"), (r"\boxed{24:00}", "23:00"), ("Monday", "Tuesday"),
]  # fmt: skip
CHINESE_RIGHT = [
    ("答案是三棱锥。", "三棱锥"), ("答案是五边形。", "五边形"), ("答案是正方形", "正方形"), ("答案是2。", "两个"),
    ("答案是三元。", "3"), ("答案是三千克。", "3"), ("答案是五个苹果。", "5"), ("答案是五只", "5"), ("答案是十二米", "12"),
    ("答案是十二平方厘米", "12"), ("答案是三十人", "30"), ("答案是三十岁", "30"), ("答案是三点五公里", "3.5"),
    ("答案是八天", "8"), ("答案是一百二十元", "120"), ("答案是三个半", "3.5"), ("答案是两倍", "2"), ("答案是三小时", "3"),
    ("答案是三十分钟", "30"), ("答案是六十度", "60"), ("答案是二十本书", "20"), ("答案是四名学生", "4"),
    ("答案是7棵树", "7"), ("答案是等腰三角形", "等腰三角形"), ("答案是百分之五", "5%"), ("答案是两条直线", "2"),
    ("答案是一半", "1/2"), ("答案是第三象限", "第三象限"), ("所以这个图形是平行四边形。", "平行四边形"),
    ("答案是六十四", "64"), (r"\boxed{三棱柱}", "三棱柱"), (r"\boxed{三}", "3"),
]  # fmt: skip
CHINESE_WRONG = [
    ("答案是五棱柱。", "五边形"), ("答案是5。", "五边形"), ("答案：四棱锥", "四棱柱"), ("答案是六面体。", "六棱柱"),
    ("答案是二次函数", "二元函数"), ("答案是一次函数", "二次函数"), ("答案是1。", "一次函数"), ("答案是三角函数", "三角形"),
    ("答案是二面角", "2"), ("答案是三位数", "3"), ("答案是五角星", "五"), ("答案是四季", "四"), ("答案是七巧板", "七"),
    ("答案是一般", "一"), ("答案是百合", "一百"), ("答案是3棱柱", "3"), ("答案是三个半", "3"), ("答案是十多个", "10"),
    ("答案是三四个", "34"), ("答案是万里长城", "万"), ("答案是八折", "8"), ("答案是直角三角形", "等腰三角形"),
    ("答案是三等分", "3"), ("答案是千克", "1000"), ("答案是五年级", "5"), ("答案是第二象限", "第三象限"),
    ("答案是3", "第三象限"), ("答案是三维", "3"), ("答案是九章算术", "9"), ("答案是四元数", "4"),
    (r"\boxed{\text{三棱锥}}", "三棱柱"),
]  # fmt: skip
LAST_RIGHT = [
    ("\\boxed{E=mc^2}.\nThe answer is D.", "D"), ("\\boxed{12}\nAnswer: 13", "13"), (r"Answer: 13. \boxed{12}", "12"),
    ("\\boxed{A}\n\nThe final answer is B", "B"), (r"\boxed{12}. The answer is correct.", "12"),
    (r"\boxed{12}. I am confident this answer is right.", "12"), (r"\boxed{12}. The answer is in simplest form.", "12"),
    ("\\boxed{12}\n<answer>13</answer>", "13"), ("#### 12\nThe answer is 13", "13"), ("The answer is 13\n#### 12", "12"),
    ("\\boxed{x=2}\n**Final Answer**: 3", "3"), ("\\boxed{\\Delta E}\n\nAnswer: (C)", "C"),
    ("\\boxed{\\frac{1}{2}mv^2}\n故选B", "B"), ("\\boxed{7}\n【答案】8", "8"), ("Answer: 5\nwait\nAnswer: 6", "6"),
    (r"\boxed{3}, so the final answer is: \boxed{4}", "4"), (r"\boxed{12}. The answer is reasonable because 3*4=12.", "12"),
    ("\\boxed{5}\n\n**Answer:** **C**", "C"), ("The energy is \\boxed{E_1}.\nTherefore, the correct answer is (B).", "B"),
    (r"\boxed{12} apples. Answer: 12 apples.", "12"), ("\\boxed{D}\nExplanation: A is wrong since it has 5.", "D"),
    (r"\boxed{8}. So, the answer to the question is 9.", "9"), (r"\boxed{F=ma}. The correct choice is A.", "A"),
    (r"First \boxed{2}. Final answer: 3 apples.", "3"), ("\\boxed{10}\n答案：12", "12"),
    ("\\boxed{10}\n所以答案是12。", "12"), ("Answer: C\n\\boxed{D}", "D"),
    ("\\boxed{42}\n\nThe answer is therefore 42.", "42"), (r"\boxed{42}. Hence the answer is unique.", "42"),
]  # fmt: skip
LAST_WRONG = [
    ("\\boxed{12}\nAnswer: 13", "12"), ("Answer: 5\nwait\nAnswer: 6", "5"),
]  # fmt: skip
LABELS_RIGHT = [
    ("The sum is 15.\nNote 2", "15"), ("12 + 3 = 15 (see Figure 4)", "15"), ("Total is 20\n\nStep 3: check", "20"),
    ("一共是20。\n步骤3：检查", "20"), ("She has 18 apples", "18"), ("9 + 9 makes\n18.", "18"),
    ("1. 3 + 4 = 7\n2. 7 * 2 = 14", "14"), ("The total is 14. See Table 5 for more.", "14"),
    ("so x equals 6. From Eq. (3)", "6"), ("Step 1: 5 apples\nStep 2: 5 + 3 = 8", "8"), ("x = 30\nStep 5", "30"),
    ("4.", "4"), ("3 + 10 = 13", "13"), ("So he pays 12.50 in total", "12.5"),
]  # fmt: skip
LABELS_WRONG = [
    ("Step 1: add\nStep 2: sub\nStep 3:", "3"), ("We do this.\nStep 12", "12"), ("So we need Equation (2)", "2"),
    ("as shown in Figure 3", "3"), ("see Note 2", "2"), ("Now Q7", "7"), ("1. Add\n2. Sub\n3.", "3"),
    ("1) Add\n2) Sub\n3)", "3"), ("(1) Add\n(2) Sub\n(3)", "3"), ("by equation (5) we conclude", "5"), ("Case 2", "2"),
    ("Problem 9", "9"), ("Question 4", "4"), ("第3步：计算", "3"), ("步骤5：输出", "5"), ("Part 3", "3"),
    ("Therefore by Theorem 4", "4"), ("Section 2", "2"), ("Example 6", "6"), ("from (1) and (2), we get", "2"),
    ("Line 4: return x", "4"), ("**Step 4**", "4"), ("### Step 2", "2"), ("Paso 5", "5"), ("Étape 2 :", "2"),
    ("Schritt 3", "3"), ("Hint 3", "3"), ("in Appendix 2", "2"), ("Method 2:", "2"),
]  # fmt: skip
CHOICES_RIGHT = [
    ("The answer is (C) because it fits.", "C"), ("The answer is C) Rome", "C"), ("Answer: C. Rome", "C"),
    ("The correct choice is (D).", "D"), ("The correct option is: D", "D"), ("Option D is correct.", "D"),
    ("D is the correct answer.", "D"), ("**Answer: (A)**", "A"), ("Answer: **A**", "A"), (r"\boxed{\text{A}}", "A"),
    (r"\boxed{(A)}", "A"), (r"\boxed{A. 5}", "A"), (r"\boxed{\textbf{(A) }5}", "A"), (r"\boxed{\textbf{(A) }5}", "5"),
    (r"\boxed{\text{A) Paris}}", "A"), (r"\boxed{\mathrm{(A)}\ 12}", "A"), ("The answer is A: Paris", "A"),
    ("Answer: A - Paris", "A"), ("(J)", "J"), ("The answer is (J).", "J"), ("Answer: A, C", "AC"), ("Answer: AC", "A, C"),
    ("The answer is A and C.", "AC"), ("答案：AC", "AC"), ("答案：A、C", "AC"), ("故选：B", "B"), ("故选B。", "B"),
    ("因此选D", "D"), ("选项B正确", "B"), ("正确答案是C选项", "C"), ("答案选A", "A"), ("Answer: B", "(B) Paris"),
    ("Answer: B", "B. Paris"), ("Answer: (B) Paris", "(B) Paris"), ("B", "B) 12"), ("#### B", "B"), ("#### (B) 12", "B"),
    ("I choose option B.", "B"), ("I would go with C.", "C"), ("So the best answer is E.", "E"),
    ("The answer is for sure D, it can't be A or B", "D"),
    ("The answer: D, it doesn't make sense for it to be A or B", "D"),
    ("thinking about it I think the correct answer is C", "C"), ("Therefore I think it's B", "B"), ("B. Paris", "B"),
    ("B) Paris", "B"), ("<answer>B</answer>", "B"), ("My answer is b", "B"), ("Answer: b)", "B"),
    ("The answer is [B].", "B"), ("The answer must be B.", "B"), ("答案是（B）。", "B"), ("Final answer: C", "C"),
    ("The answer is B, not C.", "B"), ("Correct answer: (C) 15", "C"), ("Correct answer: (C) 15", "15"),
    ("The right option is A", "A"), ("Option A is incorrect. Option B is correct.", "B"), ("D", "(D) Alina"),
    ("C", "C Cecile"), ("A", "A Peter"), ("The correct answers are A, C, and D.", "ACD"), ("答案：ABD", "ABD"),
    ("答案是B和D", "BD"), ("We select option C.", "C"), ("B\nBecause 3 + 4 = 7", "B"), ("(D)\nIt has 5 of 6.", "D"),
]  # fmt: skip
CHOICES_WRONG = [
    ("Answer: C. Rome", "B"), (r"\boxed{\textbf{(A) }5}", "6"), ("The answer is A, B and C.", "A"),
    ("The answer is A or B.", "A"), ("(A) 1 (B) 2 (C) 3 (D) 4", "A"), ("A. 1\nB. 2\nC. 3\nD. 4", "A"),
    ("Answer: (A) 1 (B) 2 (C) 3 (D) 4", "D"), ("The answer is A and C.", "AB"), ("Answer: A", "AC"), ("Answer: AC", "A"),
    ("故选 B", "C"), ("Answer: C", "B. Paris"), ("(B) Paris", "A"), ("<answer>B. Paris</answer>", "C"),
    ("The answer is not B.", "B"), ("The answer is either B or C.", "B"),
    ("Option A is incorrect. Option B is correct.", "A"), ("C", "(A) Cecile"), ("答案：ABD", "AB"),
]  # fmt: skip
HEADINGS_RIGHT = [
    ("【解析】3×4=12\n【答案】12 <eoa>", "12"), ("【解析】略 <eoe>\n【答案】 D <eoa>", "D"),
    ("【答案】C\n【解析】因为 1+1=2，所以选 C。", "C"), ("【答案】\nB", "B"), ("【答案】：AB", "AB"),
    ("【参考答案】C", "C"), ("【最终答案】12", "12"), ("【正确答案】A", "A"), ("【解答】D", "D"),
    ("【解答】解：3+4=7\n故选B", "B"), ("【解答】3+4=7\n答：一共7个。", "7"), ("答：一共有12个苹果。", "12"),
    ("答:12", "12"), ("最终答案：12", "12"), ("## 答案\n12", "12"), ("**答案**：12", "12"), ("答案：12<|im_end|>", "12"),
    ("Answer: 12</s>", "12"), ("The answer is 12[EOS]", "12"), ("#### 12<|endoftext|>", "12"),
    (r"\boxed{12}<|eot_id|>", "12"), ("Réponse : 12", "12"), ("Respuesta: 12", "12"), ("La respuesta es 12.", "12"),
    ("Antwort: 12", "12"), ("Die Antwort ist 12.", "12"), ("Ответ: 12", "12"), ("答え：12", "12"), ("정답: 12", "12"),
    ("[Answer] 12", "12"), ("Ans: 12", "12"), ("Answer: 12 <eoa>", "12"), ("答案为：D", "D"), ("故答案为：12", "12"),
    ("故答案为 D．", "D"), ("### Answer\n12", "12"), ("**Answer**\n\n12", "12"), ("Final Answer\n12", "12"),
    ("[答案]D", "D"), ("【答案】：【C】", "C"), ("Risposta: 12", "12"), ("Resposta: 12", "12"),
    ("【分析】1+1\n【详解】2+2=4\n【答案】D", "D"), ("【点睛】\n【答案】-3", "-3"),
]  # fmt: skip
HEADINGS_WRONG = [
    ("【答案】A<eoa>\n", "B"), ("【答案】12\n【解析】3 乘 5 得 15。", "15"),
]  # fmt: skip
UNITS_RIGHT = [
    (r"\boxed{12.5\text{ Pa}}", "12.5"), (r"\boxed{12.5\text{ eV}}", "12.5"), (r"\boxed{9.8\text{ m/s}^2}", "9.8"),
    (r"\boxed{9.8\ \mathrm{m/s^2}}", "9.8"), (r"\boxed{5\,\mathrm{kg\cdot m/s}}", "5"), (r"\boxed{50\ \Omega}", "50"),
    (r"\boxed{50\,\mathrm{k\Omega}}", "50"), (r"\boxed{3\text{ kJ/mol}}", "3"),
    (r"\boxed{3 \mathrm{~mol} \cdot \mathrm{L}^{-1}}", "3"), (r"\boxed{25^\circ\text{C}}", "25"),
    (r"\boxed{6\ \mu\text{m}}", "6"), (r"\boxed{6\text{ μm}}", "6"), (r"\boxed{40\text{ dB}}", "40"),
    (r"\boxed{7\text{ apples}}", "7"), (r"\boxed{7\text{ red apples}}", "7"), ("12.5 N", "12.5"),
    ("The answer is 300 K.", "300"), ("The answer is 12 kPa", "12"), ("The answer is 12 nm", "12"),
    ("The answer is 5 eV.", "5"), (r"\boxed{12\text{ dozen}}", "144"), ("#### 9", "9 (apples)"),
    ("#### 9 apples", "9 (apples)"), ("#### 9 (apples)", "9"), ("#### 9 apples (red)", "9"),
    ("#### 7.74", "7.74 (dollars)"), ("#### $7.74", "7.74 (dollars)"), ("#### 12", "12 (square feet)"),
    ("#### 1/3", "1/3 (cup)"), ("#### 9（个）", "9"), ("#### 9", "9 (cm)"), ("#### 3, 5", "3 (apples); 5 (pears)"),
    (r"\boxed{2x\text{ cm}}", "2x"), (r"\boxed{\frac{3}{4}\text{ hours}}", "3/4"),
    (r"\boxed{10\pi \text{ cm}^2}", r"10\pi"), (r"\boxed{\sqrt{2}\ \mathrm{m}}", r"\sqrt{2}"),
    (r"\boxed{5\text{ m}^3}", "5"), (r"\boxed{5\text{ mph}}", "5"), ("5 miles per hour", "5"), ("The speed is 5 m/s.", "5"),
    ("5 km/h", "5"), (r"\boxed{\SI{5}{\newton}}", "5"), (r"\boxed{5\text{ A}}", "5"), (r"\boxed{5\text{ V}}", "5"),
    (r"\boxed{5 \text{ W}}", "5"), (r"\boxed{5 \; \text{rad/s}}", "5"),
    (r"\boxed{1.6 \times 10^{-19}\text{ C}}", "1.6e-19"), ("9 (nine)", "9"), ("#### 100 (percent)", "100%"),
    (r"\boxed{12.5\text{ N}}", "12.5 N"), ("#### 5", "5 N"), (r"\boxed{5 (\text{kg})}", "5"),
]  # fmt: skip
UNITS_WRONG = [
    (r"\boxed{12.5\text{ N}}", "12.6"), (r"\boxed{12\text{ thousand}}", "12"), (r"\boxed{12\text{ hundred}}", "12"),
    ("#### 10", "9 (apples)"), ("#### 7.75", "7.74 (dollars)"), ("#### 5, 3", "3 (apples); 6 (pears)"),
    ("#### 6 (not 5)", "6"), ("#### 6 (or 5)", "6"), (r"\boxed{5 \text{ or } 6}", "5"), (r"\boxed{2\mathrm{i}}", "2"),
    (r"\boxed{3\mathrm{e}}", "3"), (r"\boxed{3\text{ is wrong}}", "3"),
]  # fmt: skip
MODIFIED_RIGHT = [
    ("The answer is minus 3.", "-3"), ("The answer is cube root of 27.", "3"),
    ("The answer is the square root of 16.", "4"), ("The answer is 3 and a half.", "3.5"),
    ("The answer is 3 and a quarter.", "3.25"), ("The answer is 3 and two thirds.", "11/3"), ("The answer is 3².", "9"),
    ("The answer is 3^2.", "9"), ("The answer is 3³", "27"), ("The answer is 3 squared.", "9"),
    ("The answer is 3 cubed.", "27"), ("The answer is about 3.", "3"), ("The answer is approximately 3.", "3"),
    ("The answer is 3 dozen.", "36"), ("The answer is half of 3.", "1.5"), ("The answer is 3 hundred.", "300"),
    ("The answer is 3 thousand.", "3000"), ("The answer is twice 3.", "6"), ("The answer is 3 times 4.", "12"),
    ("The answer is 3 factorial.", "6"), ("so the result is negative 3.", "-3"), ("It is 3 and a half", "3.5"),
    ("The answer is three hundred and five.", "305"), ("The answer is twelve.", "12"),
    ("The answer is twelve apples.", "12"), ("The answer is twenty-one.", "21"), ("The answer is two thirds.", "2/3"),
    ("The answer is one half.", "0.5"), ("The answer is three quarters.", "3/4"), ("The answer is a dozen.", "12"),
    ("The answer is half a dozen.", "6"), ("The answer is plus or minus 3.", r"\pm 3"), ("答案是负3。", "-3"),
    ("答案是根号3。", r"\sqrt{3}"), ("答案是3的平方。", "9"), ("答案是大约3。", "3"), ("The answer is 3 percent.", "3%"),
    ("The answer is 3e2", "300"), ("The answer is 3 minus 4.", "-1"), ("The answer is 3 divided by 4.", "3/4"),
    ("The answer is 3 over 4.", "0.75"), ("The answer is the square of 3.", "9"),
    ("The answer is 3 to the power of 2.", "9"), ("The answer is negative one half.", "-1/2"),
    ("The answer is 3 and 1/2.", "3.5"), ("The answer is 3½.", "3.5"), ("The answer is a third of 9.", "3"),
    ("The answer is 2516_8.", "2516_8"), ("The answer is -3.", "-3"), ("The answer is negative three.", "-3"),
    ("The final value is minus five", "-5"), ("The answer is double 3.", "6"), ("The answer is moins 3.", "-3"),
    ("La respuesta es menos 3.", "-3"), ("The answer is 1,234 apples and no more.", "1234"),
]  # fmt: skip
MODIFIED_WRONG = [
    ("The answer is minus 3.", "3"), ("The answer is -3.", "3"), ("The answer is cube root of 27.", "27"),
    ("The answer is 3^2.", "3"), ("The answer is 3 squared.", "3"), ("The answer is at most 3.", "3"),
    ("The answer is more than 3.", "3"), ("The answer is less than 3.", "3"), ("The answer is 3 dozen.", "3"),
    ("The answer is half of 3.", "3"), ("The answer is -3 or 3.", "3"), ("The answer is twice 3.", "3"),
    ("The answer is 3 times 4.", "3"), ("The answer is 3 or more.", "3"), ("The answer is 3+.", "3"),
    ("The answer is up to 3.", "3"), ("The answer is nearly 3.", "3"), ("The answer is between 3 and 4.", "3"),
    ("The answer is over 3.", "3"), ("The answer is not 3.", "3"), ("The answer is > 3.", "3"), ("The answer is ≥ 3", "3"),
    ("so the result is negative 3.", "3"), ("She has at least 3.", "3"), ("She gets 3².", "3"),
    ("So x is the square root of 3.", "3"), ("It is 3 and a half.", "3"), ("The answer is twelve.", "13"),
    ("The answer is plus or minus 3.", "3"), ("答案是负3。", "3"), ("答案是根号3。", "3"), ("答案是3的平方。", "3"),
    ("答案是至少3。", "3"), ("答案是至少3个。", "3"), ("答案是3以上。", "3"), ("答案是不超过3。", "3"),
    ("答案是3倍多。", "3"), ("The answer is 3/4 of 8.", "3/4"), ("The answer is 3 million.", "3"),
    ("The answer is no more than 3.", "3"), ("The answer is 2516_8.", "2516"), ("The answer is 3 and 4.", "3"),
    ("The answer is fewer than 3 apples.", "3"), ("The answer is 3 apples or fewer.", "3"),
]  # fmt: skip


def correct(output, gold):
    found = judge(output, gold, "auto")
    assert found["problem"] is None, found["problem"]
    return found["correct"]


def test_times_dates_ratios_and_versions_are_values_of_their_own():
    assert [row for row in COMPOUND_RIGHT if not correct(*row)] == [] and [row for row in COMPOUND_WRONG if correct(*row)] == []


def test_chinese_words_are_words_unless_a_unit_or_measure_word_follows_a_number():
    assert [row for row in CHINESE_RIGHT if not correct(*row)] == [] and [row for row in CHINESE_WRONG if correct(*row)] == []


def test_the_last_explicit_statement_wins():
    assert [row for row in LAST_RIGHT if not correct(*row)] == [] and [row for row in LAST_WRONG if correct(*row)] == []


def test_labels_of_steps_equations_and_lists_are_no_answers():
    assert [row for row in LABELS_RIGHT if not correct(*row)] == [] and [row for row in LABELS_WRONG if correct(*row)] == []


def test_an_option_is_its_letter_alone_or_with_what_it_stands_for():
    assert [row for row in CHOICES_RIGHT if not correct(*row)] == [] and [row for row in CHOICES_WRONG if correct(*row)] == []


def test_headings_and_marks_of_the_end_in_the_languages_of_the_usual_outputs():
    assert [row for row in HEADINGS_RIGHT if not correct(*row)] == [] and [row for row in HEADINGS_WRONG if correct(*row)] == []


def test_what_is_written_as_a_unit_behind_a_number_is_one():
    assert [row for row in UNITS_RIGHT if not correct(*row)] == [] and [row for row in UNITS_WRONG if correct(*row)] == []


def test_words_that_change_a_number_are_read_or_there_is_no_answer():
    assert [row for row in MODIFIED_RIGHT if not correct(*row)] == [] and [row for row in MODIFIED_WRONG if correct(*row)] == []
