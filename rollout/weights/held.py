"""What an engine holds, read back and compared with what was sent: a sum over the bits of every weight.

The sum does not depend on the order of the elements, so a stacked projection has the sum of its parts and a sharded one the sum
of its shards. It tells a tensor that was left as it was, however little an update changed it: in bfloat16 log-probabilities are
known to a hundredth of a nat, and an update moves them by less. Misplaced tensors are the canary's business.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rollout.weights.threads import MOST_THREADS, on_all_cores

BITS = {2: torch.int16, 4: torch.int32}
STACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""The parts of stacked modules where a model of vLLM does not say them."""
EXPERTS = {"w13_weight": ("gate_proj", "up_proj", "w1", "w3"), "w2_weight": ("down_proj", "w2")}
"""What vLLM's experts hold, and the layers of each expert that these are stacked from."""
ROWS = 1024
"""Of the unit matrix, in one product."""
PART = 2**17
"""Elements that are added up at once, in the cache."""


def sum_of_bits(tensor: Tensor) -> int:
    """Sum of the elements' bits taken as integers; -0 counts as 0."""
    bits = tensor.detach().view(BITS[tensor.element_size()])
    zero = torch.iinfo(bits.dtype).min  # the bits of -0
    if bits.device.type != "cpu":
        return int(bits.sum(dtype=torch.int64) - zero * (bits == zero).sum())
    values = bits.contiguous().numpy().reshape(-1)  # torch widens all of it before it adds up, which takes ten times as long
    parts = (values[first : first + PART] for first in range(0, values.size, PART))
    return sum(int(part.sum(dtype=np.int64)) - zero * int(np.count_nonzero(part == zero)) for part in parts)


def held_sums(model: nn.Module, dtype: torch.dtype) -> list[tuple[str, int]]:
    """(parameter, sum) of every weight of a vLLM model in `dtype`; twice where there are two copies, as of an output head."""
    with on_all_cores() as pool:
        found = [(n, [pool.submit(sum_of_bits, p)]) for n, p in model.named_parameters() if p.dtype == dtype and p.numel()]
        for name, module in cast(Iterable[tuple[str, Any]], model.named_modules()):
            # vLLM's CPU build packs matrices for its kernels. A product with a row of the unit matrix is a column, exactly.
            widths = (getattr(module, key, None) for key in ("input_size_per_partition", "input_size", "embedding_dim"))
            width = next(filter(None, widths), None)
            if hasattr(module, "cpu_linear") and width:
                columns = (module.quant_method.apply(module, x, None) for x in torch.eye(width, dtype=dtype).split(ROWS))
                found.append((f"{name}.weight", [pool.submit(sum_of_bits, part) for part in columns]))
                found[max(0, len(found) - MOST_THREADS)][1][-1].result()  # no more are held in memory
        return [(name, sum(part.result() for part in parts)) for name, parts in found]


def differing(
    held: Sequence[Mapping[str, Sequence[int]]], sums: Mapping[str, int], stacked: Mapping[str, Sequence[str]]
) -> tuple[list[str], set[str]]:
    """(parameters that do not hold what was sent, tensors that were sent and cannot be found in the engine).

    `held`: by tensor-parallel rank, each parameter's copies. `stacked`: the parts of each stacked module. A parameter is
    sharded over the ranks, or whole on each; of attention with fewer key-value heads than ranks, each head is on several.
    """
    wrong, unread = [], set(sums)
    for name in held[0]:
        parts = _parts(name, stacked, sums)
        if not parts or not all(part in sums for part in parts):
            continue
        unread -= set(parts)
        first, others = sums[parts[0]], sum(sums[part] for part in parts[1:])
        totals = {first + repeated * others for repeated in range(1, 1 + len(held))}
        copies = zip(*(rank[name] for rank in held), strict=True)
        if not all(sum(copy) in totals or set(copy) == {first + others} for copy in copies):
            wrong.append(name)
    return wrong, unread


def _parts(name: str, stacked: Mapping[str, Sequence[str]], sent: Collection[str]) -> list[str]:
    """The tensors of a checkpoint that make up a parameter of the engine."""
    path = name.split(".")
    if path[-2:-1] == ["routed_experts"]:
        of_layer, layers = ".".join([*path[:-2], ""]), EXPERTS.get(path[-1], ())
        return [part for part in sent if part.startswith(of_layer) and part.split(".")[-2] in layers]
    for i, module in enumerate(path if name not in sent else ()):
        if parts := stacked.get(module, STACKED.get(module)):
            return [".".join([*path[:i], part, *path[i + 1 :]]) for part in parts]
    return [name]
