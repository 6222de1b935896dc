"""Full gradients in one process, one output at a time in float64, from the textbook losses and plain forward passes."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from reward.models.scalar_model import ScalarModel, build
from reward.types import Labelled, LabelledGroup, ScoredSample
from tests.learner import textbook
from tests.learner.builders import VOCABULARY, examples, plain_distributions, scored
from tests.learner.textbook import Output

HEAD_SEED = 5
"""Of the critic's head, which a worker starts at zero."""


def batch_of(unit: str, process: bool = False, seed: int = 0) -> list[ScoredSample]:
    """Ragged groups, or pairs, with one-token outputs and tool tokens; one output of a group is unscorable."""
    draw = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    batch = []
    for g in range(5):
        prompt = torch.randint(3, VOCABULARY, (3 + g,), generator=draw).tolist()
        for index in range(2 if unit == "pair" else 4):
            length = 1 if index == g % 4 else integer(2, 9)
            output = torch.randint(3, VOCABULARY, (length,), generator=draw).tolist()
            mask = [True] + [bool(x) for x in torch.rand(length - 1, generator=draw) > 0.2]
            ends = sorted({integer(0, length), length - 1}) if process else [length - 1]
            events = [] if (unit, g, index) == ("token", 1, 2) else [(t, float((index + g) % 2) + 0.1 * t) for t in ends]
            logprobs = (-4 + 0.3 * torch.randn(length, generator=draw)).tolist()
            batch.append(scored(f"g/{g}", index, prompt, output, events=events, mask=mask, logprobs=logprobs))
    return batch


def labelled_batch(seed: int = 0) -> list[LabelledGroup]:
    """Outputs with soft labels at the ends of one or two steps; one output has none."""
    batch = batch_of("token", process=True, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    labels = [tuple(replace(e, value=float(torch.randint(5, (), generator=draw)) / 4) for e in item.events) for item in batch]
    return examples([replace(item, events=events) for item, events in zip(batch, labels, strict=True)])


def slow_scalars(model: ScalarModel, item: ScoredSample | Labelled, positions: list[int]) -> torch.Tensor:
    """(K, positions) scalars of one output alone; position -1 is the prompt's last token."""
    ids = torch.tensor([item.sample.prompt_ids + item.sample.output_ids])
    at = torch.tensor(positions) + len(item.sample.prompt_ids)
    return model(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None], at)


def policy_gradients(name: str, directory: Path, reference_dir: Path, batch: list[ScoredSample]) -> tuple[dict, dict]:
    """Of the row's textbook loss by the policy's parameters and, where it has one, of the value loss by the critic's. The
    reference is the teacher too."""
    policy = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    frozen = AutoModelForCausalLM.from_pretrained(reference_dir, dtype=torch.float64)
    critic = build(directory, "process", members=1, seed=HEAD_SEED, dtype=torch.float64)
    outputs, values = [], []
    for item in batch:
        values.append(slow_scalars(critic, item, list(range(-1, len(item.sample.output_ids) - 1)))[0])
        with torch.no_grad():
            teacher_every = plain_distributions(frozen, item.sample, 1.0)
        every, chosen = plain_distributions(policy, item.sample, 1.0), torch.tensor(item.sample.output_ids)[:, None]
        logprob, reference = (x.gather(1, chosen)[:, 0] for x in (every, teacher_every))
        mu = torch.tensor(item.sample.logprobs, dtype=torch.float64)
        others = {"old": logprob.detach() if name == "masked" else mu, "mu": mu, "reference": reference, "teacher": reference}
        others |= {"every": every, "teacher_every": teacher_every}
        outputs.append(Output(item=item, logprob=logprob, value=values[-1].detach(), **others))
    textbook.LOSSES[name](outputs).backward()

    def value_loss(output, _):
        value = next(v for v, o in zip(values, outputs, strict=True) if o is output)[output.mask]
        returns = textbook.gae(output) + output.value[output.mask]
        return (0.5 * (value - returns) ** 2).mean()

    textbook.over_outputs(outputs, value_loss).backward()
    return tuple({key: p.grad for key, p in model.named_parameters()} for model in (policy, critic))


def ranking_gradients(model: ScalarModel, pairs: list[LabelledGroup], counts: list[list[int]]) -> dict:
    """-log sigmoid(r+ - r-), the mean over pairs; `counts[k][i]` for member k and output i."""
    loss = 0.0
    for number, pair in enumerate(pairs):
        worse, better = sorted(pair.labelled, key=lambda item: item.targets[0].value)
        plus, minus = (slow_scalars(model, item, [len(item.sample.output_ids) - 1])[:, 0] for item in (better, worse))
        seen_K = torch.tensor([count[2 * number] for count in counts])
        loss = loss - (seen_K * torch.log(torch.sigmoid(plus - minus))).sum() / len(pairs)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def label_gradients(model: ScalarModel, batch: list[LabelledGroup], counts: list[list[int]]) -> dict:
    """-y log p - (1 - y) log(1 - p), p = sigmoid(score), the mean over labels; `counts[k][i]` for member k and output i."""
    items = [item for group in batch for item in group.labelled]
    loss, labels = 0.0, sum(len(item.targets) for item in items)
    for i, item in enumerate(items):
        if item.targets:
            p_KN = torch.sigmoid(slow_scalars(model, item, [target.position for target in item.targets]))
            y_N = torch.tensor([target.value for target in item.targets], dtype=torch.float64)
            entropy_KN = -y_N * p_KN.log() - (1 - y_N) * (1 - p_KN).log()
            seen_K = torch.tensor([count[i] for count in counts])
            loss = loss + (seen_K * entropy_KN.sum(1)).sum() / labels
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}
