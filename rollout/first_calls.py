"""A torch error that one must know: MKL picks the kernel of an elementary function at its first call. Where several threads
make that call at once, one of them may get a kernel with half of the bits (pytorch/pytorch#188792), and what an engine computes
then and keeps, the sines of its positions, is off by 2e-4 for as long as it lives."""

import torch

FUNCTIONS = (
    "acos", "asin", "atan", "cos", "cosh", "erf", "erfc", "erfinv", "exp", "expm1", "lgamma", "log", "log10", "log1p", "log2",
    "rsqrt", "sigmoid", "sin", "sinh", "sqrt", "tan", "tanh",
)  # fmt: skip
"""That torch leaves to MKL, or did in some version."""


def pick_kernels() -> None:
    """Call each function once, on one number, which one thread does. For every process that computes, before it does."""
    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(one)
