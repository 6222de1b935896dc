"""Weights in shared memory: the sender's half.

The sender packs tensors into plain files under /dev/shm, described in a manifest; `rollout.weights.staging` receives them.
Torch only, so any process can take part. Plain files instead of multiprocessing.shared_memory, whose resource tracker unlinks
segments that another process still reads.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import blake3
import torch

from rollout import leftovers

ALIGNMENT = 64
"""Bytes; a tensor's offset must be a multiple of its item size to be viewed in place."""


class TransferError(ValueError):
    """Weights that may not be loaded; the message names the tensor or bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One file under /dev/shm."""

    segment: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor: `nbytes` bytes at `offset` of bucket number `bucket`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bucket: int
    offset: int
    nbytes: int
    blake3: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What was published. `digest` identifies the bytes: names, dtypes, shapes and contents, not where they lie.

    Example: Manifest(version=7, buckets=(Bucket(segment="cohort_run_41_v7_0", nbytes=4096),), tensors=(...,), digest="9f...")
    """

    version: int
    buckets: tuple[Bucket, ...]
    tensors: tuple[Entry, ...]
    digest: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Manifest":
        """The inverse of `to_dict`, also after JSON. Raises TransferError for anything else."""
        try:
            tensors = tuple(Entry(**{**entry, "shape": tuple(entry["shape"])}) for entry in data["tensors"])
            buckets = tuple(Bucket(**bucket) for bucket in data["buckets"])
            return cls(version=data["version"], buckets=buckets, tensors=tensors, digest=data["digest"])
        except (KeyError, TypeError) as error:
            raise TransferError(f"not a weight manifest: {error!r}") from error


def digest_of(tensors: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """One BLAKE3 over (name, dtype, shape, BLAKE3 of the bytes) of every tensor, in order."""
    total = blake3.blake3()
    for name, dtype, shape, contents in tensors:
        total.update(json.dumps([name, dtype, list(shape), contents]).encode())
    return total.hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes as a flat uint8 tensor on the CPU, without a copy where that is possible."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def hash_of(flat: torch.Tensor) -> str:
    """BLAKE3 of a flat uint8 tensor, on all cores."""
    return blake3.blake3(flat.numpy().data, max_threads=blake3.blake3.AUTO).hexdigest()


def checked(source: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate a weight source, comparing each tensor with what its `metadata()` declares. Raises TransferError."""
    declared = source.metadata()
    count = 0
    for name, tensor in source:
        found = (name, tensor.dtype, tuple(tensor.shape))
        want = (declared[count].name, declared[count].dtype, tuple(declared[count].shape)) if count < len(declared) else None
        if found != want:
            raise TransferError(f"weight source yields {found} where its metadata declares {want}")
        count += 1
        yield name, tensor
    if count < len(declared):
        raise TransferError(f"weight source ends before {declared[count].name!r}, which its metadata declares")


def write_buckets(source: Any, *, prefix: str, version: int, bucket_bytes: int = 64 * 2**20) -> Manifest:
    """Publish every (name, tensor) of a weight source. The caller releases the manifest; on an error nothing is left behind."""
    buckets: list[Bucket] = []
    entries: list[Entry] = []
    waiting: list[tuple[int, torch.Tensor]] = []
    used = 0

    def flush() -> None:
        segment = f"cohort_{prefix}_{os.getpid()}_v{version}_{len(buckets)}"
        buckets.append(Bucket(segment=segment, nbytes=used))
        with _created(segment) as file:
            file.truncate(used)
            for offset, flat in waiting:
                file.seek(offset)
                file.write(flat.numpy().data)
        waiting.clear()

    try:
        for name, tensor in checked(source):
            flat = as_bytes(tensor)
            if waiting and used + flat.numel() > bucket_bytes:
                flush()
            offset = 0 if not waiting else -(-used // ALIGNMENT) * ALIGNMENT
            waiting.append((offset, flat))
            used = offset + flat.numel()
            where = {"bucket": len(buckets), "offset": offset, "nbytes": flat.numel(), "blake3": hash_of(flat)}
            entries.append(Entry(name=name, dtype=dtype_name(tensor.dtype), shape=tuple(tensor.shape), **where))
        if waiting:
            flush()
    except BaseException:
        for bucket in buckets:
            segment_path(bucket.segment).unlink(missing_ok=True)
        raise
    digest = digest_of((e.name, e.dtype, e.shape, e.blake3) for e in entries)
    return Manifest(version=version, buckets=tuple(buckets), tensors=tuple(entries), digest=digest)


def release(manifest: Manifest) -> None:
    """Remove the manifest's segments from this node."""
    for bucket in manifest.buckets:
        segment_path(bucket.segment).unlink(missing_ok=True)


def read_bucket(segment: str) -> bytes:
    """A bucket's bytes, to be sent to another node."""
    return segment_path(segment).read_bytes()


def write_bucket(segment: str, data: bytes) -> None:
    """Materialise a bucket of another node. Its name should carry the writer's process id, by which `sweep` judges it."""
    with _created(segment) as file:
        file.write(data)


def _created(segment: str) -> BinaryIO:
    """Its file, which no other user can read."""
    return open(segment_path(segment), "wb", opener=lambda path, flags: os.open(path, flags, 0o600))


def segment_path(segment: str) -> Path:
    """The file of a segment. Raises TransferError for a name that is not one of ours."""
    if not leftovers.SEGMENT.fullmatch(segment):
        raise TransferError(f"{segment!r} is not the name of a weight segment")
    return leftovers.SHM / segment
