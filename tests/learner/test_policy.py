"""The packed forward pass against the model's own, and the models that are refused."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.algorithms.credit import GroupRelative, Ones
from learner.algorithms.weighting import Clipped
from learner.training.objectives import PolicyObjective
from tests.learner.builders import credit, load_policy, pack, plain_logprobs, random_batch, scored


def packed_logprobs(policy, batch, temperature=1.0, max_tokens=4096):
    """(tokens,) log-probabilities by slot."""
    packed = pack(batch, credit(Ones(), batch), max_tokens=max_tokens)
    found = torch.zeros(packed.trained_tokens, dtype=policy.causal_lm.dtype)
    with torch.no_grad():
        for micro in packed.micro_batches:
            found[micro.slot_N] = policy(micro, temperature)[0]
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_packed_logprobs_equal_each_output_alone(model_dir, tied_dir, tied, temperature):
    directory, batch = tied_dir if tied else model_dir, random_batch(groups=5)
    policy = load_policy(directory, torch.float64, chunk=7)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    with torch.no_grad():
        alone = [plain_logprobs(model, x.sample, temperature)[torch.tensor(x.sample.sampled_mask)] for x in batch]
    for budget in (1, 40, 4096):
        torch.testing.assert_close(packed_logprobs(policy, batch, temperature, budget), torch.cat(alone), rtol=0, atol=1e-6)


def test_the_gradient_of_logits_at_tokens_that_a_program_printed_is_exactly_zero(model_dir):
    # Each output: a program (6, 7), what it printed (40 and up), and words after it. No token is in two places.
    batch = [
        scored("g", 0, [3, 4], [6, 7, 40, 41, 42, 8, 2], mask=[1, 1, 0, 0, 0, 1, 1], reward=1.0, logprobs=[-4.0] * 7),
        scored("g", 1, [3, 4], [9, 10, 43, 11], mask=[1, 1, 0, 1], reward=0.0, logprobs=[-4.0] * 4),
        scored("h", 0, [5], [12, 44, 45], mask=[1, 0, 0], reward=0.0, logprobs=[-4.0] * 3),
        scored("h", 1, [5], [46, 13], mask=[0, 1], reward=1.0, logprobs=[-4.0] * 2),
    ]
    policy = load_policy(model_dir, torch.float64, chunk=3)
    hidden = []

    def keep(module, args, output):
        output.last_hidden_state.retain_grad()
        hidden.append(output.last_hidden_state)

    policy.causal_lm.base_model.register_forward_hook(keep)
    objective = PolicyObjective(weighting=Clipped(kl=0), temperature=1.0, compare_behaviour=False)
    predicted = {}
    for micro in pack(batch, credit(GroupRelative(), batch), max_tokens=64).micro_batches:
        micro = replace(micro, old_logprob_N=policy(micro, 1.0)[0].detach())
        objective(policy, micro)[0].backward()
        # The head is linear, so the gradient here is the head's weight times that of the logits.
        moved = hidden.pop().grad.flatten(0, 1).abs().amax(-1)
        tokens, first = micro.input_ids_BT.flatten().tolist(), len(predicted)
        for index, token in enumerate(tokens):
            # The first token of an output is predicted at the prompt's end, which all outputs share.
            if token > 5 and token not in (6, 9, 12, 46):
                predicted[token] = moved[index - 1].item()
        assert len(predicted) > first
    printed = {token for token in predicted if token >= 40}
    assert printed == {40, 41, 42, 43, 44, 45} and all(predicted[token] == 0.0 for token in printed)
    assert all(predicted[token] > 1e-6 for token in (7, 8, 10, 11, 13))


def test_a_neighbours_tokens_never_move_a_rows_logprobs(model_dir):
    policy = load_policy(model_dir, torch.float32, chunk=64)
    ours = scored("g", 0, [5, 9, 11], [6, 7, 2])
    first = [ours, scored("g", 1, [5, 9, 11], [8, 8, 8, 8]), scored("h", 0, [3], [4] * 6)]
    second = [ours, scored("g", 1, [5, 9, 11], [60, 2, 2, 33]), scored("h", 0, [50], [2] * 6)]
    assert torch.equal(packed_logprobs(policy, first)[:3], packed_logprobs(policy, second)[:3])


@pytest.mark.parametrize(("width", "pad"), [(4, 0), (4, 2), (9, 2)])
def test_padding_never_moves_a_rows_logprobs(model_dir, width, pad):
    policy = load_policy(model_dir, torch.float32, chunk=64)
    ours = scored("g", 0, [5, 9], [6, 2])
    longer = [ours, scored("h", 0, [3], [4] * width)]
    packed = pack(longer, credit(Ones(), longer), max_tokens=4096)
    (micro,) = packed.micro_batches
    micro.input_ids_BT[micro.segment_BT == -1] = pad
    with torch.no_grad():
        found = policy(micro, 1.0)[0][micro.sample_N == 0]
    torch.testing.assert_close(found, packed_logprobs(policy, [ours]), rtol=0, atol=1e-5)
