"""The one policy objective.

SFT, RFT, DPO, PPO and GRPO share a gradient, E[1/|o| sum_t GC(q, o, t) grad log pi(o_t)] (eq. 5), and differ in GC. Their
losses depend on the parameters only through log pi of the trained tokens, so with GC = -dL/dlog pi this loss has their
gradient exactly. Its value means nothing; weightings return the textbook objective for the log.
"""

from torch import Tensor


def policy_loss(coefficient_N: Tensor, logprob_N: Tensor, token_weight_N: Tensor) -> Tensor:
    """Scalar whose gradient is that of the algorithm's loss. The coefficient carries no gradient."""
    return -(coefficient_N * logprob_N * token_weight_N).sum()
