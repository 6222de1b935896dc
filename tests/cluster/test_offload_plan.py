"""What a plan says of a learner whose state is in host memory."""

from dataclasses import replace

import pytest

from cluster.planning import cost, memory
from cluster.planning.cost import Load
from learner.config import LearnerConfig
from tests.cluster.test_planning import DEVICE, LLAMA_7B, shape, work  # noqa: F401


def test_of_an_offloaded_rank_the_gpu_has_what_is_gathered_and_computes_behind_the_hosts_memory(shape):  # noqa: F811
    model = shape(LLAMA_7B)
    asked = work(reference=True, learner=LearnerConfig(compute_dtype="bfloat16", max_tokens_per_microbatch=1000, offload=True))
    parts = memory.learner(model, asked, 1)
    assert {name for name, size in parts.items() if size} == {"gathered", "activations", "program"}
    assert parts["gathered"] == 2 * 2 * 6_476_267_520 / 32 + 8 * 32000 * 4096
    load, how = Load(positions=1, pairs=1, trained=1, micro_batches=3), cost.learning_of(model, asked)
    n = 6_738_415_616
    # Weights for each direction and gradients back, of three micro-batches, then AdamW's 28 bytes a parameter.
    assert how.offload and cost.train(model, load, replace(how, reads=0, updates=1), DEVICE, (1, 8)) == pytest.approx(
        n * (3 * 3 * 4 + 28) / 25e9
    )
