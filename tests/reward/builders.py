import random
import traceback
from dataclasses import replace
from pathlib import Path

from reward.judging.pool import Outcome
from reward.judging.rule import judge
from reward.types import RewardEvent, ScoredGroup, ScoredSample, Verdict
from rollout.types import FinishReason, Group, Question, Sample

HANGS = r"\{" + ",".join(f"x+{i}" for i in range(2500)) + r"\}"
"""An answer that takes long to compare with another such: each of its members with each of the other's."""


def judge_here(rows):
    """As a pool judges by the rule, in this process and without limits."""
    return [_outcome(row) for row in rows]


def _outcome(row):
    try:
        return Outcome(status="score", value=judge(**row), reason="", seconds=0.0)
    except Exception:
        return Outcome(status="error", value=None, reason=traceback.format_exc(), seconds=0.0)


def question(ordinal=0, gold="7", text="3 + 4"):
    return Question(ordinal=ordinal, id=f"q:{ordinal}", text=text, gold=gold, prompt_ids=(1, 2))


def sample(text, ordinal=0, index=0, tokens=3, finish_reason=FinishReason.STOP, output_ids=None):
    ids = (5,) * tokens if output_ids is None else tuple(output_ids)
    return Sample(
        ordinal=ordinal,
        group_id=f"grpo/{ordinal}",
        index=index,
        attempt=0,
        prompt_ids=(1, 2),
        output_ids=ids,
        sampled_mask=(True,) * len(ids),
        logprobs=(-0.5,) * len(ids),
        text=text,
        versions=((0, 0),),
        finish_reason=finish_reason,
    )


def sampled_groups(samples, questions=None):
    """The samples of each question, as a group."""
    questions = {q.ordinal: q for q in questions or [question()]}
    ordinals = dict.fromkeys(s.ordinal for s in samples)
    return [Group(question=questions[n], samples=tuple(s for s in samples if s.ordinal == n)) for n in ordinals]


def scored_groups(scored, asked=None):
    """The scored samples of each group id, as groups of one question."""
    names = dict.fromkeys(s.sample.group_id for s in scored)
    members = [tuple(s for s in scored if s.sample.group_id == name) for name in names]
    return [ScoredGroup(question=asked or question(), scored=group) for group in members]


def flat(groups):
    """The outputs of scored or labelled groups, in order."""
    return [item for group in groups for item in (group.scored if isinstance(group, ScoredGroup) else group.labelled)]


def judged(group="grpo/0", index=0, reward=1.0, tokens=3, **components):
    """A scored sample, its reward at its last token; unscorable for None."""
    one = replace(sample("#### 7", index=index, tokens=tokens), group_id=group)
    status = "unscorable" if reward is None else "score"
    verdict = Verdict(status=status, reward=reward, components=components, extracted="7", reason="", reward_version=None)
    events = () if reward is None else (RewardEvent(position=tokens - 1, value=reward),)
    return ScoredSample(sample=one, events=events, verdict=verdict)


def random_ids(seed: int, count: int, eos: int = 2) -> list[list[int]]:
    """Sequences of 2 to 20 ids of the tiny model's vocabulary; every other one ends in eos."""
    rng = random.Random(seed)
    rows = [[1, *(rng.randrange(4, 100) for _ in range(rng.randint(1, 19)))] for _ in range(count)]
    return [[*row[:-1], eos] if k % 2 else row for k, row in enumerate(rows)]


def write_gpt2(directory: Path) -> Path:
    """A tiny GPT-2, whose token classifier names its head otherwise, with a tokenizer that has no special token but eos."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = {"vocab_size": 100, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(directory)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(100)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0").save_pretrained(directory)
    return directory
