"""A vLLM error that one must know: on the CPU it spreads the temperature of a request over its guessed tokens by a kernel for
integers, and drops what that says (0.32). Guesses are then checked at whatever temperatures the memory holds."""

import torch
from torch import Tensor


def spread(x_B: Tensor, ends_B: Tensor, tokens: int, replace_from: int = 0, replace_to: int = 0) -> Tensor:
    """(N,) each request's value for all of its tokens, which end at `ends_B`; where it is `replace_from` another. In the place
    of vLLM's `expand_batch_to_tokens`."""
    counts_B = torch.diff(ends_B, prepend=ends_B.new_zeros(1))
    return x_B.masked_fill(x_B == replace_from, replace_to).repeat_interleave(counts_B, output_size=tokens)
