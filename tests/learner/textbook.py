"""The textbook loss of every row, from rewards to a scalar, one output at a time, written from the papers' formulas."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from reward.types import ScoredSample


@dataclass(kw_only=True)
class Output:
    """One output of a question; tensors have an entry for each of its tokens, sampled or not."""

    item: ScoredSample
    logprob: Tensor
    old: Tensor
    mu: Tensor
    """What sampled, where that is not the old policy."""
    reference: Tensor
    teacher: Tensor
    value: Tensor
    every: Tensor = field(default_factory=lambda: torch.empty(0))
    """log pi of every token of the vocabulary, a row for each of the output's tokens."""
    teacher_every: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def mask(self) -> Tensor:
        return torch.tensor(self.item.sample.sampled_mask)

    @property
    def events(self) -> list[tuple[int, float]]:
        return [(event.position, event.value) for event in self.item.events]

    @property
    def reward(self) -> float:
        return sum(value for _, value in self.events)


def groups_of(outputs: list[Output]) -> list[list[Output]]:
    """The judged outputs of each question."""
    found: dict[str, list[Output]] = {}
    for output in outputs:
        if output.item.verdict.status == "score":
            found.setdefault(output.item.sample.group_id, []).append(output)
    return list(found.values())


def mean(values) -> Tensor:
    return torch.stack(list(values)).mean()


def over_outputs(outputs, objective) -> Tensor:
    """1/questions sum over questions of 1/G sum over outputs of objective(output, its group)."""
    return mean(mean(objective(output, group) for output in group) for group in groups_of(outputs))


def over_tokens(outputs, objective) -> Tensor:
    """1/(sum of |o|) sum over all tokens."""
    return torch.cat([objective(output, group) for group in groups_of(outputs) for output in group]).mean()


def group_relative(output: Output, group: list[Output], divide=True) -> Tensor:
    """A_t = sum over steps j with index(j) >= t of (r_j - mean(R)) / std(R), R all step rewards of the group."""
    rewards = torch.tensor([value for member in group for _, value in member.events], dtype=torch.float64)
    if rewards.max() == rewards.min():
        return torch.zeros(int(output.mask.sum()), dtype=torch.float64)
    std = ((rewards - rewards.mean()) ** 2).mean().sqrt() if divide else 1.0
    at = [sum((r - rewards.mean()) / std for index, r in output.events if index >= t) for t in range(len(output.mask))]
    return torch.tensor([float(a) for a in at], dtype=torch.float64)[output.mask]


def gae(output: Output, gamma=1.0, lam=0.95, beta=0.04) -> Tensor:
    """A_t = sum over l of (gamma lam)^l delta_(t+l), over the sampled tokens; a reward counts at the last of them up to it."""
    actions = output.mask.nonzero()[:, 0].tolist()
    deltas = []
    for k, t in enumerate(actions):
        last = k + 1 == len(actions)
        until = len(output.mask) if last else actions[k + 1]
        reward = sum(value for index, value in output.events if t <= index < until)
        reward = reward - beta * (output.old[t] - output.reference[t])
        deltas.append(reward + (0.0 if last else gamma * output.value[actions[k + 1]]) - output.value[t])
    return torch.stack([sum((gamma * lam) ** (m - k) * deltas[m] for m in range(k, len(deltas))) for k in range(len(deltas))])


def sampled_by_old(output: Output) -> Tensor:
    return torch.ones(int(output.mask.sum()), dtype=torch.float64)


def behaviour(output: Output, unit: str, bound) -> Tensor:
    """bound(pi_old/mu) at every sampled token; of a sequence pi_old and mu are the products of its tokens' probabilities."""
    old, mu = torch.exp(output.old[output.mask]), torch.exp(output.mu[output.mask])
    return bound(old / mu if unit == "token" else (old.prod() / mu.prod()).expand(len(old)))


def clipped(output: Output, advantage: Tensor, low=0.2, high=0.2, beta=0.0, kl_ratio=False, weight=1.0) -> Tensor:
    """weight min(rho A, clip(rho) A) - beta D at every sampled token (eq. 1 to 4)."""
    ratio = torch.exp(output.logprob) / torch.exp(output.old)
    apart = torch.exp(output.reference) / torch.exp(output.logprob)
    divergence = (apart - torch.log(apart) - 1) * (ratio if kl_ratio else 1.0)
    ratio, divergence = ratio[output.mask], divergence[output.mask]
    return weight * torch.min(ratio * advantage, torch.clip(ratio, 1 - low, 1 + high) * advantage) - beta * divergence


def grpo(outputs, weight=sampled_by_old, **options):
    def output_mean(o, group):
        return clipped(o, group_relative(o, group), beta=0.04, weight=weight(o), **options).mean()

    return -over_outputs(outputs, output_mean)


def everyone_of(outputs: list[Output]) -> list[list[Output]]:
    """The outputs of each question, judged or not."""
    everyone: dict[str, list[Output]] = {}
    for output in outputs:
        everyone.setdefault(output.item.sample.group_id, []).append(output)
    return list(everyone.values())


def sft(outputs):
    return -mean(mean(o.logprob[o.mask].mean() for o in group) for group in everyone_of(outputs))


def rft(outputs):
    return -over_outputs(outputs, lambda o, _: float(o.reward > 0.5) * o.logprob[o.mask].mean())


def rft_of_kept(outputs):
    kept = [output for output in outputs if output.item.verdict.status == "score" and output.reward > 0.5]
    return -over_outputs(kept, lambda o, _: o.logprob[o.mask].mean())


def dpo(outputs, beta=0.1, reduce=torch.mean):
    def margin(pair):
        worse, better = sorted(pair, key=lambda o: o.reward)
        plus, minus = (reduce((o.logprob - o.reference)[o.mask]) for o in (better, worse))
        return beta * plus - beta * minus

    return -mean(torch.log(torch.sigmoid(margin(pair))) for pair in groups_of(outputs) if len(pair) == 2)


def ppo(outputs):
    advantages = {id(o): gae(o) for group in groups_of(outputs) for o in group}
    whole = torch.cat(list(advantages.values()))
    centre, spread = whole.mean(), ((whole - whole.mean()) ** 2).mean().sqrt()
    return -over_outputs(outputs, lambda o, _: clipped(o, (advantages[id(o)] - centre) / spread).mean())


def dr_grpo(outputs):
    return -over_outputs(outputs, lambda o, group: clipped(o, group_relative(o, group, divide=False)).sum() / 1024)


def dapo(outputs, weight=sampled_by_old):
    return -over_tokens(outputs, lambda o, group: clipped(o, group_relative(o, group), high=0.28, weight=weight(o)))


def rloo(outputs):
    def reinforce(output, group):
        others = [other.reward for other in group if other is not output]
        return (output.reward - sum(others) / len(others)) * output.logprob[output.mask].sum()

    return -over_outputs(outputs, reinforce)


def gspo(outputs, weight=sampled_by_old):
    def sequence(output, group):
        chosen, advantage = output.mask, (weight(output) * group_relative(output, group))[0]
        ratio = torch.exp(output.logprob[chosen].sum()) / torch.exp(output.old[chosen].sum())
        ratio = ratio ** (1 / int(chosen.sum()))
        return torch.min(ratio * advantage, torch.clip(ratio, 1 - 3e-4, 1 + 4e-4) * advantage)

    return -over_outputs(outputs, sequence)


def gspo_token(outputs, weight=sampled_by_old):
    def tokens(output, group):
        advantage, logprob = weight(output) * group_relative(output, group), output.logprob[output.mask]
        ratio = (
            torch.exp((logprob - output.old[output.mask]).mean()).detach() * torch.exp(logprob) / torch.exp(logprob).detach()
        )
        return torch.min(ratio * advantage, torch.clip(ratio, 1 - 3e-4, 1 + 4e-4) * advantage).mean()

    return -over_outputs(outputs, tokens)


def cispo(outputs, weight=sampled_by_old):
    def weighted(output, group):
        ratio = torch.clip(torch.exp(output.logprob) / torch.exp(output.old), max=5.0).detach()[output.mask]
        return weight(output) * ratio * group_relative(output, group) * output.logprob[output.mask]

    return -over_tokens(outputs, weighted)


def distill(outputs):
    return -over_outputs(outputs, lambda o, _: clipped(o, (o.teacher - o.old)[o.mask]).mean())


def distill_top_k(outputs, k=16):
    def divergence(output, _):
        """sum over v of pi log(pi/p_T), the k likeliest tokens one by one and all others as one."""
        likeliest = output.every.detach().topk(k).indices
        p, q = (torch.exp(x).gather(1, likeliest) for x in (output.every, output.teacher_every))
        p, q = (torch.cat([x, 1 - x.sum(1, keepdim=True)], 1) for x in (p, q))
        return (p * torch.log(p / q)).sum(1)[output.mask]

    return mean(mean(divergence(o, group).mean() for o in group) for group in everyone_of(outputs))


LOSSES = {
    "sft": sft,
    "rft": rft,
    "online_rft": rft,
    "dpo": dpo,
    "ppo": ppo,
    "grpo": grpo,
    "grpo_process": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "rloo": rloo,
    "gspo": gspo,
    "cispo": cispo,
    "distill": distill,
    "distill_top_k": distill_top_k,
    "masked": partial(grpo, weight=partial(behaviour, unit="sequence", bound=lambda w: w * ((w >= 0.2) & (w <= 5.0)))),
}
