"""Episodes of reasoning and programs, with a scripted policy and the real sandbox; characters are tokens."""

import asyncio
from dataclasses import replace

import pytest

from rollout.config import RolloutConfig, ToolsConfig
from rollout.tools.episode import ToolLoop, without_tool_output
from rollout.tools.sandbox import Ran, SandboxError
from rollout.types import Completion, FinishReason, Sampling, TokenRequest

END = 1


class Characters:
    """A tokenizer whose tokens are characters, but for the end (1) and three backticks at once (2)."""

    special = {END: "", 2: "```"}

    def get_vocab(self):
        return {"<end>": END, "```": 2, **{chr(i): i for i in range(3, 128)}}

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(self.special.get(i, chr(i)) for i in ids)

    def __call__(self, text, add_special_tokens, split_special_tokens):
        assert not add_special_tokens and split_special_tokens

        class Encoded:
            input_ids = [ord(c) for c in text]

        return Encoded


class Scripted:
    """A policy that says its parts one after the other, each until it is paused or ends; remembers what it was asked."""

    def __init__(self, *scripts):
        self.scripts, self.asked = [list(script) for script in scripts], []

    async def __call__(self, requests):
        self.asked.append(requests)
        return [self._one(request) for request in requests]

    def _one(self, request):
        script = self.scripts[request.prompt_ids[0]]
        ids = []
        while len(ids) < request.sampling.max_new_tokens:
            ids.append(script.pop(0))
            if ids[-1] == END or ids[-1] in request.pauses:
                reason = FinishReason.STOP
                break
        else:
            reason = FinishReason.LENGTH
        version = len(self.asked) // 3
        return Completion(output_ids=tuple(ids), logprobs=(-1.0,) * len(ids), versions=((version, 0),), finish_reason=reason)


def said(text):
    return [ord(c) for c in text] + [END]


def play(*scripts, tokens=400, sandbox=None, **config):
    loop = ToolLoop(ToolsConfig(**config), Characters(), [END])
    if sandbox is not None:
        loop._sandbox = sandbox
    requests = [
        TokenRequest(prompt_ids=(i, 40), seed=7 + i, sampling=Sampling(temperature=1.0, max_new_tokens=tokens))
        for i in range(len(scripts))
    ]
    policy = Scripted(*scripts)
    episodes = asyncio.run(loop.run(requests, policy, lambda position, turn: 1000 * position + turn))
    return policy, episodes


def text(episode):
    return Characters().decode(episode.output_ids, True)


PROGRAM = "So:\n```python\nprint(6 * 7)\n```"


def test_a_program_runs_and_what_it_prints_goes_back_without_credit():
    policy, (episode,) = play(said(PROGRAM)[:-1] + said("\nIt is 42."))
    shown = "\n```output\n42\n```\n"
    assert text(episode) == f"{PROGRAM}{shown}\nIt is 42." and episode.finish_reason is FinishReason.STOP
    ours = [
        Characters().decode([t], True)
        for t, sampled in zip(episode.output_ids, episode.sampled_mask, strict=True)
        if not sampled
    ]
    assert "".join(ours) == shown and sum(episode.sampled_mask) == len(PROGRAM) + len("\nIt is 42.") + 1
    values = dict.fromkeys(zip(episode.sampled_mask, episode.logprobs, strict=True))
    assert list(values) == [(True, -1.0), (False, 0.0)]
    assert policy.asked[-1][0].prompt_ids == (0, 40, *map(ord, PROGRAM + shown)), "it reads what was printed"
    assert [r.seed for (r,) in policy.asked][:2] == [7, 1]
    assert [r.sampling.max_new_tokens for (r,) in policy.asked][-1] == 400 - len(PROGRAM + shown)
    assert episode.versions[0] == (0, 0) and all(start <= len(episode.output_ids) for _, start in episode.versions)


def test_a_fence_of_one_token_and_other_fences_and_backticks():
    fenced = [ord(c) for c in "a `b`\n```text\nno program\n```\n"] + [2] + [ord(c) for c in "python\nprint(1)\n"] + [2]
    _, (episode,) = play(fenced + said(" end"))
    assert text(episode) == "a `b`\n```text\nno program\n```\n```python\nprint(1)\n```\n```output\n1\n```\n end"
    assert episode.programs == 1


def test_episodes_of_a_wave_go_their_own_ways():
    plain, twice = said("no program"), [*map(ord, PROGRAM), *map(ord, PROGRAM), *said("!")]
    _, (one, two) = play(plain, twice)
    assert text(one) == "no program" and all(one.sampled_mask) and one.programs == 0
    assert two.programs == 2 and text(two).count("42") == 2


def test_after_the_last_program_that_it_may_run_the_policy_goes_on_alone():
    _, (episode,) = play([*map(ord, PROGRAM), *map(ord, PROGRAM), *said("end")], max_programs=1)
    assert episode.programs == 1 and text(episode).count("```output") == 1 and episode.finish_reason is FinishReason.STOP


def test_the_limit_on_tokens_holds_for_both_kinds_together():
    script = [*map(ord, PROGRAM), *said("x" * 1000)]
    for tokens in (len(PROGRAM) - 1, len(PROGRAM), len(PROGRAM) + 5, len(PROGRAM) + 18, len(PROGRAM) + 19, 100):
        _, (episode,) = play(list(script), tokens=tokens)
        assert len(episode.output_ids) == len(episode.sampled_mask) == len(episode.logprobs) == tokens
        assert episode.finish_reason is FinishReason.LENGTH


def test_a_wrong_program_shows_its_error_and_a_printed_fence_does_not_end_the_block():
    _, (episode,) = play([*map(ord, "```python\nprint('`' * 3 + 'output')\n1 / 0\n```"), *said("")])
    assert "ZeroDivisionError" in text(episode) and text(episode).count("```") == 4
    assert without_tool_output(text(episode)) == "```python\nprint('`' * 3 + 'output')\n1 / 0\n```\n"


def test_a_sandbox_that_fails_is_no_answer_but_a_failure():
    class Broken:
        async def run(self, program, patience):
            raise SandboxError("no room")

    _, (bad, good) = play([*map(ord, PROGRAM), *said("")], said("fine"), sandbox=Broken())
    assert bad.failure == "no room" and bad.finish_reason is FinishReason.FAILED
    assert good.failure == "" and good.finish_reason is FinishReason.STOP


def test_what_is_judged_is_what_the_policy_states():
    assert without_tool_output("a\n```output\n#### 7\n```\nb") == "a\nb"
    assert without_tool_output("a\n```output\n#### 7") == "a\n"
    assert without_tool_output("a ```python\nx\n```") == "a ```python\nx\n```"


def test_a_tokenizer_without_the_fence_is_refused():
    class Digits(Characters):
        def get_vocab(self):
            return {str(i): i for i in range(10)}

    with pytest.raises(ValueError, match="no token of the tokenizer has the character `"):
        ToolLoop(ToolsConfig(), Digits(), [END])
    assert RolloutConfig().tools is None and Ran(output="", ended="time").ended == "time"


def test_an_output_without_tokens_ends_its_episode_alone():
    class Mute(Scripted):
        def _one(self, request):
            made = super()._one(request)
            return made if request.prompt_ids[0] else replace(made, output_ids=(), logprobs=())

    policy = Mute(said("x"), said("fine"))
    requests = [TokenRequest(prompt_ids=(i, 40), seed=i, sampling=Sampling(temperature=1.0, max_new_tokens=9)) for i in (0, 1)]
    mute, other = asyncio.run(ToolLoop(ToolsConfig(), Characters(), [END]).run(requests, policy, lambda i, turn: 0))
    assert (mute.output_ids, mute.finish_reason) == ([], FinishReason.STOP) and other.output_ids == said("fine")
