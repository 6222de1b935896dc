"""Weights in shared memory: the sender's half.

The sender packs tensors into plain files under /dev/shm, described in a manifest; `rollout.weights.staging` receives them.
Torch only, so any process can take part. Plain files instead of multiprocessing.shared_memory, whose resource tracker unlinks
segments that another process still reads.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import blake3
import torch
from torch.utils.weak import WeakIdKeyDictionary

from rollout import leftovers
from rollout.weights.held import sum_of_bits
from rollout.weights.threads import MOST_THREADS, on_all_cores

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
    sum: int
    """Of the elements' bits; see rollout.weights.held."""


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


def write_buckets(source: Any, *, prefix: str, version: int, bucket_bytes: int = 16 * 2**20) -> Manifest:
    """Publish every (name, tensor) of a weight source. The caller releases the manifest; on an error nothing is left behind.

    Threads hash and write buckets while the next ones are gathered. A tensor that comes under two names is written once.
    """
    name_of = f"cohort_{prefix}_{os.getpid()}_v{version}_{{}}".format
    buckets: list[Bucket] = []
    written: list[Future[list[Entry]]] = []
    waiting: list[tuple[str, torch.Tensor, int]] = []
    order: list[tuple[str, str]] = []
    used, first = 0, cast(dict[torch.Tensor, str], WeakIdKeyDictionary())
    try:
        with on_all_cores() as pool:

            def flush() -> None:
                buckets.append(Bucket(segment=name_of(len(buckets)), nbytes=used))
                written.append(pool.submit(_written, buckets[-1], len(written), waiting.copy()))
                waiting.clear()
                if len(written) > MOST_THREADS:  # no more are held in memory
                    written[-1 - MOST_THREADS].result()

            for name, tensor in checked(source):
                order.append((name, first.setdefault(tensor, name)))
                if order[-1][1] != name:
                    continue
                offset = -(-used // ALIGNMENT) * ALIGNMENT
                if waiting and offset + tensor.nbytes > bucket_bytes:
                    flush()
                offset = offset if waiting else 0
                waiting.append((name, tensor, offset))
                used = offset + tensor.nbytes
            if waiting:
                flush()
            entries = {entry.name: entry for bucket in written for entry in bucket.result()}
    except BaseException:
        for bucket in buckets:
            segment_path(bucket.segment).unlink(missing_ok=True)
        raise
    tensors = tuple(replace(entries[same], name=name) for name, same in order)
    digest = digest_of((e.name, e.dtype, e.shape, e.blake3) for e in tensors)
    return Manifest(version=version, buckets=tuple(buckets), tensors=tensors, digest=digest)


def _written(bucket: Bucket, number: int, tensors: Iterable[tuple[str, torch.Tensor, int]]) -> list[Entry]:
    """Write (name, tensor, offset) into a new file; the entries."""
    entries = []
    with _created(bucket.segment) as file:
        file.truncate(bucket.nbytes)
        for name, tensor, offset in tensors:
            flat = as_bytes(tensor)
            file.seek(offset)
            file.write(flat.numpy().data)
            where = {"bucket": number, "offset": offset, "nbytes": flat.numel(), "sum": sum_of_bits(tensor)}
            kind = dtype_name(tensor.dtype)
            entries.append(Entry(name=name, dtype=kind, shape=tuple(tensor.shape), blake3=hash_of(flat), **where))
    return entries


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
