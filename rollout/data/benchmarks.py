"""Benchmarks that DeepSeekMath reports: where their files keep question and answer, and how they are asked.

The prompts are the paper's: the question, a newline, and the instruction in the question's language.
"""

from typing import Literal

from rollout.strict import Strict

Mode = Literal["cot", "tool"]

ENGLISH: dict[Mode, str] = {
    "cot": "Please reason step by step, and put your final answer within \\boxed{}.",
    "tool": "Please integrate natural language reasoning with programs to solve the problem above, "
    "and put your final answer within \\boxed{}.",
}
CHINESE: dict[Mode, str] = {
    "cot": "请通过逐步推理来解答问题，并把最终答案放置于\\boxed{}中。",
    "tool": "请结合自然语言和Python程序语言来解答问题，并把最终答案放置于\\boxed{}中。",
}


class Benchmark(Strict):
    """One benchmark. Templates are over the columns of its rows."""

    question: str
    answer: str
    instruction: dict[Mode, str]
    breakdown: tuple[str, ...] = ()
    """Columns by whose values accuracy is broken down, where a file has them."""


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(question="{question}", answer="{answer}", instruction=ENGLISH),
    "math": Benchmark(question="{problem}", answer="{answer}", instruction=ENGLISH, breakdown=("level", "subject", "type")),
    "mgsm-zh": Benchmark(question="{question}", answer="{answer}", instruction=CHINESE),
    "cmath": Benchmark(
        question="{question}", answer="{golden}", instruction=CHINESE, breakdown=("grade", "reasoning_step", "num_digits")
    ),
}
