"""Outputs of several turns with environments, in their real processes, and a scripted policy; characters are tokens."""

import asyncio
import os
import textwrap
import time

import pytest
from pydantic import TypeAdapter, ValidationError

from rollout.config import EnvironmentConfig, PromptConfig, RolloutConfig
from rollout.data.prompts import encode_reply, encode_response, render
from rollout.environments import loop as loops
from rollout.environments.loop import EnvironmentLoop
from rollout.environments.process import EnvironmentFailed, Environments
from rollout.patience import Patience
from rollout.tasks.arithmetic import character_tokenizer
from rollout.types import Completion, Ended, FinishReason, Group, Lease, Question, Sampling, TokenRequest
from rollout.worker import RolloutWorker
from tests.rollout.test_episode import Characters, Scripted, said
from tests.rollout.test_prompts import TURNS, tokenizer_with

GUESS = """
import os, random, time

class Guess:
    def __init__(self, question, gold, columns):
        self.question, self.gold, self.guesses, self.right = question, gold, 0, False
        assert columns == {"level": 1}, columns

    def step(self, output):
        if output == "hang":
            time.sleep(60)
        if output == "die":
            os._exit(3)
        if output == "draw":
            return str(random.random())
        if output == "number":
            return 7
        if output == "who":
            return str(os.getpid())
        self.guesses += 1
        self.right = output == self.gold
        return None if self.right else f"no: {self.question}"

    def rewards(self):
        if self.guesses > 8:
            return {}
        return {"right": self.right, "quick": 1 / self.guesses if self.guesses else 0}

make = Guess
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("environment") / "guess.py"
    path.write_text(GUESS)
    return path


@pytest.fixture
def play(file, monkeypatch):
    """Scripts of a policy -> the policy with what it was asked, and the ended episodes."""
    monkeypatch.setattr(loops, "encode_reply", lambda tokenizer, text, prompt: [ord(c) for c in f"<{text}>"])

    def played(*scripts, tokens=100, **config):
        config = EnvironmentConfig(function=f"{file}:make", **config)
        loop = EnvironmentLoop(config, Characters(), PromptConfig(template="plain"))
        questions, requests = [], []
        for i in range(len(scripts)):
            ids = (i, 40)
            questions.append(Question(ordinal=i, id="q", text="6 * 7", gold="42", prompt_ids=ids, columns={"level": 1}))
            sampling = Sampling(temperature=1.0, max_new_tokens=tokens)
            requests.append(TokenRequest(prompt_ids=ids, seed=7 + i, sampling=sampling))
        policy = Scripted(*scripts)
        try:
            episodes = asyncio.run(loop.run(questions, requests, policy, lambda position, turn: 1000 * position + turn))
        finally:
            loop.close()
        return policy, episodes

    return played


def replied(episode):
    ids = [token for token, own in zip(episode.output_ids, episode.sampled_mask, strict=True) if not own]
    return Characters().decode(ids, True)


def test_a_reply_goes_behind_the_policys_turn_without_credit_and_the_episode_has_the_environments_parts(play):
    policy, (one, two) = play(said("41") + said("42"), said("42"))
    shown = said("41") + [ord(c) for c in "<no: 6 * 7>"] + said("42")
    assert one.output_ids == shown and one.sampled_mask == [True] * 3 + [False] * 11 + [True] * 3
    assert one.logprobs == [-1.0] * 3 + [0.0] * 11 + [-1.0] * 3
    assert one.ended == Ended(rewards={"right": 1.0, "quick": 0.5}, answer="42")
    assert two.ended == Ended(rewards={"right": 1.0, "quick": 1.0}, answer="42") and two.output_ids == said("42")
    assert one.finish_reason is two.finish_reason is FinishReason.STOP
    (again,) = policy.asked[1]
    assert again.prompt_ids == (0, 40, *shown[:14]), "what it said is handed on in its own tokens"
    assert (again.seed, again.sampling.max_new_tokens) == (1, 100 - 14)


def test_limits_end_an_episode_which_is_worth_what_its_environment_says(play):
    _, (turns,) = play(said("1") * 3, max_turns=2)
    assert turns.output_ids[-2:] == said("1") and turns.ended == Ended(rewards={"right": 0.0, "quick": 0.5}, answer="1")
    assert turns.finish_reason is FinishReason.STOP
    _, (cut,) = play(said("123456"), tokens=4)
    assert cut.finish_reason is FinishReason.LENGTH and cut.ended.rewards == {"right": 0.0, "quick": 0.0}, "no turn ended"
    _, (full,) = play(said("1"), tokens=8)
    assert (full.finish_reason, len(full.output_ids), sum(full.sampled_mask)) == (FinishReason.LENGTH, 8, 2)
    assert full.ended.rewards == {"right": 0.0, "quick": 1.0}


def test_an_environment_that_raises_hangs_or_dies_fails_its_own_output_only(play):
    began = time.monotonic()
    scripts = [said("hang"), said("die"), said("number"), said("1") * 9, said("42")]
    _, (hangs, dies, number, empty, whole) = play(*scripts, tokens=200, seconds=0.5, max_turns=9)
    assert time.monotonic() - began < 20
    assert whole.ended == Ended(rewards={"right": 1.0, "quick": 1.0}, answer="42") and whole.failure == ""
    assert hangs.failure == "environment: step took longer than 0.5 s"
    assert dies.failure == "environment: step: its process ended"
    assert number.failure.startswith("environment: step: TypeError: step returned 7; expected the text that the policy")
    assert empty.failure.startswith("environment: rewards: TypeError: rewards returned no part")
    for failed in (hangs, dies, number, empty):
        assert failed.finish_reason is FinishReason.FAILED and failed.ended is None


def test_chance_is_the_outputs_own(play):
    def replied(episode):
        return Characters().decode(
            [t for t, own in zip(episode.output_ids, episode.sampled_mask, strict=True) if not own], True
        )

    first, second = (play(said("draw") + said("42"), said("draw") + said("42"))[1] for _ in range(2))
    assert replied(first[0]) == replied(second[0]) != replied(first[1]) == replied(second[1])


def test_processes_are_gone_when_their_episodes_are(play):
    _, (episode,) = play(said("who") + said("42"))
    pid = int(replied(episode)[1:-1])
    until = time.monotonic() + 10
    while time.monotonic() < until and os.path.exists(f"/proc/{pid}"):
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_file_that_cannot_be_loaded_and_one_that_makes_nothing_are_told(tmp_path):
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "few.py").write_text(textwrap.dedent("def make(question):\n    return None\n"))
    question = Question(ordinal=0, id="q", text="?", gold="1", prompt_ids=(1,))

    async def begun(name):
        environments = Environments(f"{tmp_path / name}:make")
        try:
            await environments.begin(question, 0, Patience(5.0, 1))
        finally:
            environments.close()

    with pytest.raises(EnvironmentFailed, match="cannot be loaded: ModuleNotFoundError: No module named 'nothing_of_this"):
        asyncio.run(begun("bad.py"))
    with pytest.raises(EnvironmentFailed, match=r"make: TypeError: make\(\) takes 1 positional argument but 3 were given"):
        asyncio.run(begun("few.py"))


SIMPLE = """
class make:
    def __init__(self, question, gold, columns):
        self.gold, self.said = gold, ""

    def step(self, output):
        self.said = output
        return None if output == self.gold else "9" if output == "8" else 9

    def rewards(self):
        return float(self.said == self.gold)
"""


def test_a_worker_hands_on_what_the_environment_says_and_rejects_what_it_fails(tiny_model_dir, tmp_path):
    (tmp_path / "env.py").write_text(SIMPLE)
    options = {"prompt": PromptConfig(template="plain"), "run_seed": 5, "max_model_len": 64}
    tokens = {"7": 11, "8": 12, "6": 10}
    turns = iter([["8", "6", "7"], ["7"]])

    async def generate(requests):
        said = zip(next(turns), requests, strict=True)
        reason = FinishReason.STOP
        return [
            Completion(output_ids=(tokens[t], 2), logprobs=(-1.0, -0.5), versions=((4, 0),), finish_reason=reason)
            for t, _ in said
        ]

    config = RolloutConfig(environment=EnvironmentConfig(function=f"{tmp_path / 'env.py'}:make"))
    worker = RolloutWorker(config, tiny_model_dir, generate_fn=generate, **options)
    question = Question(ordinal=1, id="q", text="?", gold="7", prompt_ids=(1, 7))
    lease = Lease(question=question, group_id="grpo/1", indices=(0, 1, 2), attempt=0)
    try:
        [group] = asyncio.run(worker.generate([lease], Sampling(temperature=1.0, max_new_tokens=20), deadline_s=5))
    finally:
        worker._environment.close()
    twice, failed, once = group.samples
    shown = tuple(encode_reply(worker.tokenizer, "9", options["prompt"]))
    assert twice.output_ids == (12, 2, *shown, 11, 2)
    assert twice.sampled_mask == (True, True, *[False] * len(shown), True, True)
    assert twice.ended == Ended(rewards={"score": 1.0}, answer="7") and twice.text == "8 9 7"
    assert twice.logprobs == (-1.0, -0.5, *[0.0] * len(shown), -1.0, -0.5) and twice.rejected == ""
    assert once.ended == twice.ended and once.output_ids == (11, 2) and all(once.sampled_mask)
    assert failed.rejected.startswith("environment: step: TypeError: step returned 9; expected") and failed.ended is None
    assert failed.logprobs == ()
    kept = TypeAdapter(Group)
    assert kept.validate_python(kept.dump_python(group, mode="json")) == group, "as a checkpoint keeps what is sampled ahead"


def test_a_reply_in_the_chat_form_is_what_the_template_shows_behind_the_end_of_the_turn():
    tokenizer, chat = tokenizer_with(), PromptConfig()
    ids = encode_reply(tokenizer, "try again", chat)
    assert tokenizer.decode(ids) == "<|user|>try again<|end|><|assistant|>"
    said = encode_response(tokenizer, "5", chat)[0]
    whole = render(tokenizer, ({"role": "user", "content": "q"},), chat) + said + tuple(ids)
    turns = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "5"}, {"role": "user", "content": "try again"})
    assert whole == render(tokenizer, turns, chat), "as if the conversation were rendered whole"
    with pytest.raises(ValueError, match="would become a control token"):
        encode_reply(tokenizer, "7<|end|>", chat)
    with pytest.raises(ValueError, match="the reply is empty"):
        encode_reply(tokenizer, " ", chat)
    with pytest.raises(ValueError, match="changed or dropped the reply"):
        encode_reply(tokenizer_with(TURNS.replace("message['content']", "message['content'][:30]")), "long " * 9, chat)


def test_a_reply_in_the_plain_form_has_lines_of_its_own():
    tokenizer = character_tokenizer()
    assert tokenizer.decode(encode_reply(tokenizer, "3 + 4", PromptConfig(template="plain"))) == "\n3 + 4\n"


def test_tools_and_an_environment_exclude_each_other_and_the_function_must_be_there(file):
    environment = {"function": f"{file}:make"}
    with pytest.raises(ValidationError, match="tools: given, and so is environment"):
        RolloutConfig(tools={}, environment=environment)
    with pytest.raises(ValidationError, match="no such file; expected the Python file of the function make"):
        EnvironmentConfig(function="nowhere.py:make")
    assert RolloutConfig(environment=environment).environment.function == f"{file}:make"
