"""Builders of tiny models, batches and workers for the learner's tests, and a slow reference written from the formulas."""

import math
import socket
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from learner.algorithms.cells import PerToken, Signals
from learner.algorithms.credit import Credit
from learner.algorithms.table import Algorithm, resolve
from learner.batch import packing
from learner.config import LearnerConfig, OptimizerConfig
from learner.models.policy import PolicyModel, load_causal_lm
from learner.types import PackedBatch, PolicyBatch
from learner.worker import LearnerWorker
from reward.labels.examples import as_labelled
from reward.types import LabelledGroup, RewardEvent, ScoredSample, Verdict, samples_of
from rollout.types import FinishReason, Sample
from tests.reward.builders import scored_groups as groups

VOCABULARY = 64


def write_model(directory: Path, seed: int = 0, **changes) -> Path:
    """A random Llama of hidden size 32, whose pad is its eos, with a tokenizer."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "initializer_range": 0.2}
    shape |= {"pad_token_id": 2, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**(shape | changes))).save_pretrained(directory)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="2", pad_token="2").save_pretrained(directory)
    return directory


def scored(
    group: str, index: int, prompt, output, *, reward=None, mask=None, logprobs=None, finish=FinishReason.STOP, events=None
) -> ScoredSample:
    """A sample with its reward at its last token, or with the given events; unscorable without either."""
    sample = Sample(
        ordinal=0,
        group_id=group,
        index=index,
        attempt=0,
        prompt_ids=tuple(prompt),
        output_ids=tuple(output),
        sampled_mask=tuple(mask or [True] * len(output)),
        logprobs=tuple(logprobs or ()),
        text="",
        versions=((0, 0),),
        finish_reason=finish,
    )
    if events is None:
        events = [] if reward is None or not output else [(len(output) - 1, reward)]
    status = "score" if events or reward is not None else "unscorable"
    verdict = Verdict(status=status, reward=reward, components={}, extracted=None, reason="", reward_version=None)
    return ScoredSample(sample=sample, events=tuple(RewardEvent(position=p, value=v) for p, v in events), verdict=verdict)


def random_batch(seed: int = 0, groups: int = 3, size: int = 4, noise: float = 0.4) -> list[ScoredSample]:
    """Ragged groups: prompts of 3, 5, 7 ... tokens, outputs of 1 to 9, some ending in eos == pad, some tokens not sampled."""
    draw = torch.Generator().manual_seed(seed)
    batch = []
    for g in range(groups):
        prompt = torch.randint(3, VOCABULARY, (3 + 2 * g,), generator=draw).tolist()
        for index in range(size):
            length = 1 if index == 0 else int(torch.randint(2, 10, (), generator=draw))
            output = torch.randint(3, VOCABULARY, (length,), generator=draw).tolist()
            output[-1] = 2 if index % 2 else output[-1]
            mask = [True] + [bool(x) for x in torch.rand(length - 1, generator=draw) > 0.2]
            logprobs = (-4 + noise * torch.randn(length, generator=draw)).tolist()
            batch.append(scored(f"g/{g}", index, prompt, output, reward=index / 4, mask=mask, logprobs=logprobs))
    return batch


def examples(batch: list[ScoredSample]) -> list[LabelledGroup]:
    """With the samples' events as labels."""
    return [as_labelled(group) for group in groups(batch)]


def signals(count: int, *, values=None, old=None, reference=None, teacher=None) -> Signals:
    """What models said of so many samples: nothing, but for what is given."""
    nothing = [None] * count
    frozen = {"reference_logprobs": reference or nothing, "teacher_logprobs": teacher or nothing}
    return Signals(values=values or nothing, old_logprobs=old or nothing, **frozen)


def credit(cell: Credit, batch: list[ScoredSample], said: Signals | None = None) -> list[tuple[float, ...] | None]:
    """Advantages in the order of the batch, whose groups need not lie together."""
    whole = groups(batch)
    rows = cell(whole, said or signals(len(batch)))
    at = {id(item): row for item, row in zip(samples_of(whole), rows, strict=True)}
    return [at[id(item)] for item in batch]


def outputs(batch: list[ScoredSample], rows: PerToken) -> list[packing.Output]:
    """The samples' tokens to pack, in the order of the batch; those without a row are out of the loss."""
    order = list(dict.fromkeys(item.sample.group_id for item in batch))
    return [
        packing.output_of(item.sample, order.index(item.sample.group_id), item.sample.sampled_mask, row is not None)
        for item, row in zip(batch, rows, strict=True)
    ]


def pack(batch: list[ScoredSample], advantages: PerToken, **how) -> PackedBatch[PolicyBatch]:
    """The batch as a policy is trained on it, without a reference."""
    made = outputs(batch, advantages)
    packed = packing.pack(made, **how)
    recorded = [item.sample.logprobs or (math.nan,) * len(item.sample.output_ids) for item in batch]
    behaviour = packing.columns(packed, made, recorded)
    columns = {"advantage_N": packing.columns(packed, made, advantages), "behaviour_logprob_N": behaviour}
    return packed.to_train(PolicyBatch, **columns, old_logprob_N=behaviour, reference_logprob_N=behaviour)


def load_policy(directory: Path, dtype: torch.dtype, chunk: int) -> PolicyModel:
    """The whole model of a directory, on the CPU."""
    return PolicyModel(load_causal_lm(directory, dtype=dtype), chunk)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def new_worker(directory: Path, *, rank=0, world_size=1, rendezvous=None, **config) -> LearnerWorker:
    place = {"rank": rank, "world_size": world_size, "rendezvous": rendezvous or free_address()}
    return LearnerWorker(LearnerConfig(**config), directory, timeout_seconds=60, **place)


def grpo(**weighting) -> Algorithm:
    return resolve("grpo", {}, weighting)


def adamw(**changes) -> OptimizerConfig:
    return OptimizerConfig(**({"learning_rate": 1e-2} | changes))


def plain_logprobs(model, sample: Sample, temperature: float) -> torch.Tensor:
    """One sample alone, the model's own forward pass, no padding and no packing."""
    return plain_distributions(model, sample, temperature)[range(len(sample.output_ids)), list(sample.output_ids)]


def plain_distributions(model, sample: Sample, temperature: float) -> torch.Tensor:
    """The same of all tokens of the vocabulary."""
    ids = torch.tensor([sample.prompt_ids + sample.output_ids])
    return (model(ids).logits[0, len(sample.prompt_ids) - 1 : -1] / temperature).log_softmax(-1)


def slow_gradients(directory: Path, reference: Path, batch, advantages, *, clip=0.2, kl=0.04, temperature=1.0):
    """Gradients of the textbook GRPO loss (eq. 3), one sample at a time in float64, by the names of the parameters."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    frozen = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float64)
    kept = [i for i, row in enumerate(advantages) if row is not None]
    group_of = [item.sample.group_id for item in batch]
    loss = 0.0
    for i in kept:
        sample = batch[i].sample
        mask = torch.tensor(sample.sampled_mask)
        logprob = plain_logprobs(model, sample, temperature)[mask]
        with torch.no_grad():
            ref = plain_logprobs(frozen, sample, temperature)[mask]
        advantage = torch.tensor(advantages[i], dtype=torch.float64)[mask]
        ratio = torch.exp(logprob - torch.tensor(sample.logprobs, dtype=torch.float64)[mask])
        gain = torch.min(ratio * advantage, ratio.clip(1 - clip, 1 + clip) * advantage)
        divergence = torch.exp(ref - logprob) - (ref - logprob) - 1
        in_group = sum(group_of[j] == group_of[i] for j in kept)
        loss = loss - (gain - kl * divergence).mean() / in_group / len({group_of[j] for j in kept})
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}
