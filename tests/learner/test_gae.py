"""Generalised advantage estimation against tables worked by hand and against written-out sums."""

import math
import random

import pytest

from learner.algorithms.cells import Signals
from learner.algorithms.gae import GAE
from rollout.types import FinishReason
from tests.learner.builders import credit, groups, scored, signals


def said_of(values, old=None, reference=None) -> Signals:
    return signals(len(values), values=values, old=old, reference=reference)


def returns(cell, batch, said):
    return list(cell.returns(groups(batch), said))


def bare(**changes) -> GAE:
    return GAE(**({"kl": 0.0, "whiten": False} | changes))


def test_the_recursion_worked_by_hand():
    batch = [scored("g", 0, [5], [6, 7, 8], reward=1.0)]
    # gamma 0.5, lam 0.5. V = 0.2, 0.4, 0.6, after the end 0; the reward 1 arrives with the last token.
    # delta_2 = 1 - 0.6 = 0.4, delta_1 = 0.5 * 0.6 - 0.4 = -0.1, delta_0 = 0.5 * 0.4 - 0.2 = 0.
    # A_2 = 0.4, A_1 = -0.1 + 0.25 * 0.4 = 0, A_0 = 0 + 0.25 * 0 = 0.
    cell, said = bare(gamma=0.5, lam=0.5), said_of([(0.2, 0.4, 0.6)])
    assert credit(cell, batch, said)[0] == pytest.approx((0.0, 0.0, 0.4), abs=1e-15)
    assert returns(cell, batch, said)[0] == pytest.approx((0.2, 0.4, 1.0), abs=1e-15)


def test_the_kl_penalty_is_taken_from_the_reward_of_its_token():
    batch = [scored("g", 0, [5], [6, 7], reward=1.0)]
    said = said_of([(0.0, 0.0)], old=[(-1.0, -2.0)], reference=[(-3.0, -1.5)])
    # r_0 = 0 - 0.1 * (-1 + 3) = -0.2, r_1 = 1 - 0.1 * (-2 + 1.5) = 1.05.
    assert credit(GAE(kl=0.1, lam=0.0, whiten=False), batch, said)[0] == pytest.approx((-0.2, 1.05), abs=1e-15)
    assert credit(GAE(kl=0.1, lam=1.0, whiten=False), batch, said)[0] == pytest.approx((0.85, 1.05), abs=1e-15)


def random_case(seed: int):
    draw = random.Random(seed)
    batch, rows = [], {"values": [], "old": [], "reference": []}
    for index in range(6):
        length = 1 if index == 0 else draw.randint(2, 12)
        mask = [draw.random() > 0.3 for _ in range(length)]
        mask[draw.randrange(length)] = True
        events = [(t, draw.random()) for t in range(length) if draw.random() > 0.6]
        batch.append(scored("g", index, [5], [6] * length, events=events or [(length - 1, 1.0)], mask=mask))
        for row in rows.values():
            row.append(tuple(draw.gauss(0, 1) for _ in range(length)))
    return batch, said_of(rows["values"], rows["old"], rows["reference"])


def steps_of(item, i, said, kl):
    """(value, reward) of each sampled token: events from it until the next one, less the penalty."""
    actions = [t for t, sampled in enumerate(item.sample.sampled_mask) if sampled]
    ends = [*actions[1:], len(item.sample.output_ids)]
    for t, end in zip(actions, ends, strict=True):
        reward = sum(event.value for event in item.events if t <= event.position < end)
        yield said.values[i][t], reward - kl * (said.old_logprobs[i][t] - said.reference_logprobs[i][t])


@pytest.mark.parametrize("seed", range(4))
def test_advantages_are_the_discounted_sum_of_deltas_over_sampled_tokens(seed):
    batch, said = random_case(seed)
    gamma, lam, kl = 0.9, 0.8, 0.3
    advantages = credit(GAE(gamma=gamma, lam=lam, kl=kl, whiten=False), batch, said)
    for i, item in enumerate(batch):
        values, rewards = zip(*steps_of(item, i, said, kl), strict=True)
        deltas = [r + gamma * after - v for v, r, after in zip(values, rewards, [*values[1:], 0.0], strict=True)]
        expected = [sum((gamma * lam) ** (m - k) * d for m, d in enumerate(deltas) if m >= k) for k in range(len(deltas))]
        mask = item.sample.sampled_mask
        assert [a for a, sampled in zip(advantages[i], mask, strict=True) if sampled] == pytest.approx(expected, abs=1e-12)
        assert all(a == 0.0 for a, sampled in zip(advantages[i], mask, strict=True) if not sampled)


@pytest.mark.parametrize("seed", range(4))
def test_with_lam_1_the_advantage_is_the_discounted_return_less_the_value(seed):
    batch, said = random_case(seed)
    cell = GAE(gamma=0.9, lam=1.0, kl=0.3, whiten=False)
    advantages, targets = credit(cell, batch, said), returns(cell, batch, said)
    for i, item in enumerate(batch):
        values, rewards = zip(*steps_of(item, i, said, 0.3), strict=True)
        to_come = [sum(0.9 ** (m - k) * r for m, r in enumerate(rewards) if m >= k) for k in range(len(rewards))]
        mask = item.sample.sampled_mask
        assert [x for x, sampled in zip(targets[i], mask, strict=True) if sampled] == pytest.approx(to_come, abs=1e-12)
        found = [a for a, sampled in zip(advantages[i], mask, strict=True) if sampled]
        assert found == pytest.approx([g - v for g, v in zip(to_come, values, strict=True)], abs=1e-12)


def test_tool_tokens_are_no_actions():
    plain = scored("g", 0, [5], [6, 7, 8], events=[(1, 0.5), (2, 1.0)])
    tool = scored("g", 0, [5], [6, 7, 90, 91, 8], events=[(3, 0.5), (4, 1.0)], mask=[True, True, False, False, True])
    cell = bare(gamma=0.9, lam=0.7)
    a, b, c = credit(cell, [plain], said_of([(0.1, 0.2, 0.3)]))[0]
    assert credit(cell, [tool], said_of([(0.1, 0.2, 99.0, -99.0, 0.3)])) == [(a, b, 0.0, 0.0, c)]
    assert returns(cell, [tool], said_of([(0.1, 0.2, 99.0, -99.0, 0.3)]))[0][2:4] == (0.0, 0.0)


def test_a_reward_before_the_first_action_is_nobodys():
    early = scored("g", 0, [5], [90, 6], events=[(0, 7.0), (1, 1.0)], mask=[False, True])
    assert credit(bare(), [early], said_of([(0.0, 0.25)])) == [(0.0, 0.75)]


def test_whitening_is_over_the_trained_tokens_of_the_batch_and_leaves_returns_alone():
    batch, said = random_case(0)
    batch.append(scored("g", 9, [5], [6]))
    said = said_of(*([*rows, (5.0,)] for rows in (said.values, said.old_logprobs, said.reference_logprobs)))
    raw, white = credit(GAE(whiten=False), batch, said), credit(GAE(), batch, said)
    masks = [item.sample.sampled_mask for item in batch]

    def trained(rows):
        return [a for row, mask in zip(rows, masks, strict=True) if row for a, s in zip(row, mask, strict=True) if s]

    values = trained(white)
    assert raw[-1] is white[-1] is None
    assert math.fsum(values) == pytest.approx(0, abs=1e-12)
    assert math.fsum(v * v for v in values) / len(values) == pytest.approx(1)
    spread = (trained(raw)[0] - trained(raw)[1]) / (values[0] - values[1])
    assert spread > 0
    assert [(a - trained(raw)[0]) / spread for a in trained(raw)] == pytest.approx([v - values[0] for v in values])
    assert returns(GAE(), batch, said) == returns(GAE(whiten=False), batch, said)


def test_equal_advantages_are_not_whitened():
    batch = [scored("g", i, [5], [6], reward=0.3) for i in range(3)]
    assert credit(GAE(kl=0.0), batch, said_of([(0.1,)] * 3)) == [(0.3 - 0.1,)] * 3


def test_truncated_outputs_end_there_or_leave_the_loss_by_name():
    batch = [
        scored("g", 0, [5], [6, 7], reward=1.0),
        scored("g", 1, [5], [6, 7], reward=0.0, finish=FinishReason.LENGTH),
        scored("g", 2, [5], [6, 7]),
    ]
    said = said_of([(0.5, 0.25)] * 3)
    kept, masked = bare(lam=0.0), bare(lam=0.0, truncated="mask")
    assert credit(kept, batch, said) == [(-0.25, 0.75), (-0.25, -0.25), None]
    assert returns(kept, batch, said) == [(0.25, 1.0), (0.25, 0.0), None]
    assert credit(masked, batch, said) == [(-0.25, 0.75), None, None]
    assert returns(masked, batch, said) == [(0.25, 1.0), None, None]


def test_an_output_without_tokens_or_actions_has_nothing_to_learn():
    batch = [scored("g", 0, [5], [], events=[(-1, 0.0)]), scored("g", 1, [5], [9], reward=1.0, mask=[False])]
    assert credit(bare(), batch, said_of([(), (3.0,)])) == [(), (0.0,)]


def test_signals_that_do_not_fit_are_refused():
    batch = [scored("g", 4, [5], [6, 7], reward=1.0)]
    with pytest.raises(ValueError, match="group g, index 4: found 1 values, expected 2, one per token"):
        credit(bare(), batch, said_of([(0.1,)]))
    with pytest.raises(ValueError, match="group g, index 4: found no reference log-probabilities"):
        credit(GAE(), batch, said_of([(0.1, 0.2)], old=[(-1.0, -1.0)], reference=[None]))
    with pytest.raises(ValueError, match="a reward at position 5, but the output has 1 tokens"):
        credit(bare(), [scored("g", 4, [5], [6], events=[(5, 1.0)])], said_of([(0.1,)]))
