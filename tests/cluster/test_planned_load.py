"""What the planner counts of a step's outputs against the micro-batches that they are packed into."""

from dataclasses import replace

import torch
from transformers import AutoConfig

from cluster.planning import cost
from cluster.planning.cost import Load
from cluster.planning.hardware import ON_CPU
from cluster.planning.workload import Lengths
from learner.batch.packing import layout, pack, plain_output
from learner.config import LearnerConfig
from learner.models.policy import visible
from tests.cluster.test_planning import DEVICE, LLAMA, work


def test_the_layout_of_lengths_is_that_of_the_packed_outputs():
    groups = [(30, [50, 10, 40]), (200, [300, 20, 90, 90]), (5, [7])]
    outputs = [plain_output(g, (1,) * prompt, (2,) * n) for g, (prompt, lengths) in enumerate(groups) for n in lengths]
    for ranks in (1, 2):
        plan = layout(groups, 512, ranks)
        for rank, mine in enumerate(plan):
            micros = pack(outputs, max_tokens=512, of_rank=(rank, ranks)).micro_batches
            micros = [micro for micro in micros if micro.target_N.numel()]
            assert [(len(rows), rows[0].width) for rows in mine] == [tuple(micro.input_ids_BT.shape) for micro in micros]
            assert [sum(row.seen for row in rows) for rows in mine] == [seen(micro) for micro in micros]
    assert sum(len(rows) * rows[0].width for rows in layout(groups, 512, 1)[0]) >= 30 + 100 + 200 + 500 + 5 + 7


def seen(micro):
    """Pairs under the learner's own mask, the diagonal counted half as in width^2 / 2; padding sees only itself."""
    mask = visible(replace(micro, shared=True), torch.float32, AutoConfig.for_model(**LLAMA))
    return (mask == 0).sum().item() - (micro.segment_BT < 0).sum().item() - (micro.segment_BT >= 0).sum().item() / 2


def test_the_load_is_the_busiest_ranks():
    ahead = work(learner=LearnerConfig(max_tokens_per_microbatch=512), lengths=Lengths(prompt=100, output=100, limit=100))
    found = cost.load(ahead, [[100, 100], [100, 100], [100, 100]], 2, DEVICE)
    # A row of 300 has a group; two of the three are on one rank, in a micro-batch each.
    assert found == Load(positions=600, pairs=2 * 300**2, trained=300, micro_batches=2)


def test_attention_computes_what_is_causal_where_nothing_is_shared_and_what_blocks_show_in_long_rows_of_gpus():
    cpu, learner = replace(DEVICE, reached=ON_CPU), LearnerConfig(max_tokens_per_microbatch=8192)

    def pairs(prompt, lengths, device):
        asked = work(learner=learner, lengths=Lengths(prompt=prompt, output=100, limit=8000))
        return cost.load(asked, lengths, 1, device).pairs

    assert pairs(100, [[400], [400]], DEVICE) == pairs(100, [[400], [400]], cpu) == 500**2, "two rows, half of each"
    # One row of 2,000 + 3 x 1,000: the prompt sees half of itself, an output the prompt and half of itself.
    assert pairs(2000, [[1000] * 3], cpu) == 5000**2
    assert pairs(2000, [[1000] * 3], DEVICE) == 2000**2 / 2 + 3 * (1000 * 2000 + 1000**2 / 2)
    assert pairs(2000, [[600] * 3], DEVICE) == 3800**2, "a short row's mask is dense"
