"""What a plan knows of hardware: the data sheets' figures of each kind, and which shares of them programs reach.

Figures are dense bfloat16 products, memory as a program sees it, and bytes a second in one direction. The shares are chosen
once for all kinds: those of GPUs after published runs of other systems (`python benchmarks/plan.py`), those of CPUs after runs
of this one on two cores.
"""

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cluster.fleet.demand import WIDTH, memory_here
from rollout.strict import nearest

GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What programs reach of the peaks, and what they spend beside arithmetic."""

    products: dict[str, float]
    """Share of the peak in matrix products, by dtype: a training pass over packed rows, and an engine's step."""
    stream: float
    """Share of the memory's bandwidth when weights, keys and values are read."""
    send: float
    """Share of a link's or network's bandwidth."""
    layer_s: float
    """Seconds a layer of a forward pass takes at least, for its kernels to be launched; backward takes twice that."""
    engine_s: float
    """Seconds of an engine's step beside its layers: scheduling, sampling."""
    request_s: float
    """More for each request of the step."""
    reduce_s: float
    """For each layer, where tensor-parallel ranks add up."""
    update_s: float
    """Seconds of a weight update beside the bytes: pause, prepare, canary."""


ON_GPU = Reached(
    products={"float32": 0.4, "bfloat16": 0.4}, stream=0.75, send=0.6, layer_s=3e-4, engine_s=3e-3, request_s=2e-5,
    reduce_s=4e-5, update_s=0.13,
)  # fmt: skip
ON_CPU = Reached(
    products={"float32": 0.6, "bfloat16": 0.3}, stream=0.75, send=1.0, layer_s=5e-4, engine_s=5e-3, request_s=8e-5,
    reduce_s=1e-3, update_s=0.15,
)  # fmt: skip
COMPILED = 0.1
"""Part of `layer_s` that is left in an engine whose steps are captured (rollout.compile)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, or the cores of one machine."""

    name: str
    narrow: float
    """bfloat16 FLOP/s."""
    wide: float
    """FLOP/s of float32 products; of GPUs without TF32, which only the output head of a bfloat16 model uses."""
    memory: float
    bandwidth: float
    """Of its memory, bytes/s."""
    link: float
    """To the other devices of its node."""
    network: float
    """To other nodes."""
    reached: Reached = ON_GPU

    @property
    def is_cpu(self) -> bool:
        return self.reached is ON_CPU

    def products(self, dtype: str) -> float:
        """FLOP/s that matrix products of the dtype reach."""
        return self.reached.products[dtype] * (self.narrow if dtype == "bfloat16" else self.wide)

    def head(self, dtype: str) -> float:
        """FLOP/s that the output head's products reach, which are added up in float32: a GPU makes bfloat16's in TF32."""
        return self.products(dtype) / (2 if dtype == "bfloat16" and not self.is_cpu else 1)

    def stream(self) -> float:
        """Bytes/s that are read."""
        return self.reached.stream * self.bandwidth

    def part(self, count: int) -> "Device":
        """What one of `count` programs has that compute at the same time: of cores its share, of GPUs a whole one each."""
        if not self.is_cpu:
            return self
        return replace(self, narrow=self.narrow / count, wide=self.wide / count, bandwidth=self.bandwidth / count)

    def send(self, *, within_node: bool) -> float:
        """Bytes/s to another device."""
        return self.reached.send * (self.link if within_node else self.network)


def _gpu(name: str, tflops: tuple[float, float], gib: float, tb_s: float, links_gb_s: tuple[float, float]) -> Device:
    return Device(
        name=name,
        narrow=tflops[0] * 1e12,
        wide=tflops[1] * 1e12,
        memory=gib * 2**30,
        bandwidth=tb_s * 1e12,
        link=links_gb_s[0] * GB,
        network=links_gb_s[1] * GB,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        #    name       TFLOP/s (fp32)  GiB  TB/s  GB/s to a neighbour, and to another node
        _gpu("H100", (989, 67), 79.2, 3.35, (450, 50)),
        _gpu("H200", (989, 67), 139.8, 4.8, (450, 50)),
        _gpu("H100-PCIe", (756, 51), 79.2, 2.0, (300, 50)),
        _gpu("H800", (989, 67), 79.2, 3.35, (200, 50)),
        _gpu("H20", (148, 44), 95.6, 4.0, (450, 50)),
        _gpu("B200", (2250, 75), 178.0, 7.7, (900, 50)),
        _gpu("GB200", (2450, 80), 184.0, 8.0, (900, 100)),
        _gpu("A100-80", (312, 19.5), 79.2, 2.0, (300, 25)),
        _gpu("A100-40", (312, 19.5), 39.4, 1.55, (300, 25)),
        _gpu("A6000", (155, 38.7), 47.5, 0.77, (25, 3)),
        _gpu("L40S", (362, 91.6), 44.4, 0.86, (25, 6)),
        _gpu("L4", (121, 30.3), 22.0, 0.3, (12, 3)),
        _gpu("4090", (165, 82.6), 23.5, 1.0, (12, 3)),
        _gpu("5090", (210, 104.8), 31.4, 1.79, (25, 3)),
    )
}
"""Network: one 400 Gb/s card a GPU beside H100 and later, 200 beside A100, 100 to 400 shared by a node of the others."""


def parse_gpus(text: str) -> tuple[Device, int]:
    """`8xH100` as the kind and how many a node has. Raises ValueError with the kinds that are known."""
    found = re.fullmatch(r"(?:([1-9]\d*)[xX])?(\S+)", text.strip())
    names = {name.lower(): gpu for name, gpu in GPUS.items()}
    if found is None or found[2].lower() not in names:
        name = found[2] if found else text
        hint = nearest(name, GPUS)
        raise ValueError(f"--gpus: found {text!r}, expected a number and a kind, as in 8xH100, of {', '.join(GPUS)}{hint}")
    return names[found[2].lower()], int(found[1] or 1)


def this_machine() -> Device:
    """This machine's cores, measured in two seconds."""
    rates, bandwidth = _product_rates(), _copy_rate()
    return Device(
        name=f"CPU, {len(os.sched_getaffinity(0))} cores",
        narrow=rates["bfloat16"],
        wide=rates["float32"],
        memory=memory_here(),
        bandwidth=bandwidth,
        link=SHM_BYTES_S,
        network=SHM_BYTES_S,
        reached=ON_CPU,
    )


SHM_BYTES_S = 0.15 * GB
"""Of a weight update through shared memory, digests and checks included."""
PROBE = (2048, 576, 1536)
"""Shape of the product that is timed: that of a small model's layer."""


def _product_rates() -> dict[str, float]:
    """FLOP/s of a product of random matrices, the best of several, by dtype."""
    import torch

    rates = {}
    for name in WIDTH:
        a, b = (torch.randn(shape, dtype=getattr(torch, name)) for shape in (PROBE[:2], PROBE[1:]))
        rates[name] = 2 * PROBE[0] * PROBE[1] * PROBE[2] / _quickest(lambda a=a, b=b: a @ b)
    return rates


def _copy_rate() -> float:
    """Bytes/s of memory that a copy reads and writes."""
    import torch

    source = torch.ones(64 * 2**20, dtype=torch.float32)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _quickest(lambda: target.copy_(source))


def _quickest(call: Callable[[], object], seconds: float = 0.5) -> float:
    """Seconds of a call, the quickest within a time in which others may be slowed by what else the machine does."""
    quickest, now, until = math.inf, time.perf_counter(), time.perf_counter() + seconds
    while now < until:
        call()
        began, now = now, time.perf_counter()
        quickest = min(quickest, now - began)
    return quickest
