"""Weights from shared memory: the receiver's half. Torch only.

Every bucket is copied into private memory first and hashed there, so that what will be loaded is what was checked. Threads do
it, each a bucket at a time.
"""

import math
import os
from collections.abc import Mapping

import torch

from rollout.weights.threads import on_all_cores
from rollout.weights.transfer import Bucket, Manifest, TransferError, digest_of, hash_of, segment_path


class Staging:
    """Weights received and verified, beside the live ones, until they are loaded or dropped."""

    def __init__(self, expected: Mapping[str, tuple[str, tuple[int, ...]]] | None = None) -> None:
        """`expected`: name -> (dtype, shape) of every tensor an update must carry; None accepts any set."""
        self._expected = expected
        self.tensors: dict[str, torch.Tensor] = {}
        self.digest = ""

    def clear(self) -> None:
        """Forget what was received."""
        self.tensors, self.digest = {}, ""

    def receive(self, manifest: Manifest) -> None:
        """Copy every bucket, then check the copies. Raises TransferError, and holds nothing then."""
        self.clear()
        self._check_structure(manifest)
        with on_all_cores() as pool:
            buckets = list(pool.map(lambda number: _received(manifest, number), range(len(manifest.buckets))))
        parts = {name: part for received in buckets for name, part in received.items()}
        tensors = {e.name: parts[e.name][0].view(getattr(torch, e.dtype)).view(e.shape) for e in manifest.tensors}
        digest = digest_of((e.name, e.dtype, e.shape, parts[e.name][1]) for e in manifest.tensors)
        if digest != manifest.digest:
            raise TransferError(f"version {manifest.version}: received digest {digest}, published {manifest.digest}")
        self.tensors, self.digest = tensors, digest

    def _check_structure(self, manifest: Manifest) -> None:
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for entry in manifest.tensors:
            if entry.name in found:
                raise TransferError(f"tensor {entry.name!r} is in the manifest twice")
            found[entry.name] = (entry.dtype, entry.shape)
            dtype = vars(torch).get(entry.dtype)
            if not isinstance(dtype, torch.dtype):
                raise TransferError(f"tensor {entry.name!r} has the unknown dtype {entry.dtype!r}")
            if entry.nbytes != math.prod(entry.shape) * dtype.itemsize or entry.offset % dtype.itemsize:
                raise TransferError(f"tensor {entry.name!r}: {entry.nbytes} bytes at {entry.offset} is no {found[entry.name]}")
            if not 0 <= entry.bucket < len(manifest.buckets):
                raise TransferError(f"tensor {entry.name!r} is in bucket {entry.bucket} of {len(manifest.buckets)}")
            if not 0 <= entry.offset <= manifest.buckets[entry.bucket].nbytes - entry.nbytes:
                raise TransferError(f"tensor {entry.name!r} ends outside {manifest.buckets[entry.bucket].segment}")
        if self._expected is None:
            return
        for name in sorted(self._expected.keys() | found.keys()):
            want, have = self._expected.get(name), found.get(name)
            if have != want:
                problem = "is missing" if have is None else "is not a tensor of this model" if want is None else f"is {have}"
                raise TransferError(f"tensor {name!r} {problem}" + (f", expected {want}" if want and have else ""))


def _received(manifest: Manifest, number: int) -> dict[str, tuple[torch.Tensor, str]]:
    """(bytes, hash) of every tensor of a bucket, in private memory."""
    bucket = manifest.buckets[number]
    buffer, found, hashes = _copy(bucket), {}, {}
    for entry in (entry for entry in manifest.tensors if entry.bucket == number):
        flat, where = buffer[entry.offset : entry.offset + entry.nbytes], (entry.offset, entry.nbytes)
        hashed = hashes[where] = hashes.get(where) or hash_of(flat)  # a tensor may have two names
        found[entry.name] = flat, hashed
        if hashed != entry.blake3:
            text = f"received blake3 {hashed}, published {entry.blake3}"
            raise TransferError(f"tensor {entry.name!r} in {bucket.segment}: {text}")
    return found


def _copy(bucket: Bucket) -> torch.Tensor:
    """The bucket's bytes in private memory."""
    buffer = torch.empty(bucket.nbytes, dtype=torch.uint8)
    try:
        with open(segment_path(bucket.segment), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            copied = file.readinto(buffer.numpy().data)
    except FileNotFoundError as error:
        raise TransferError(f"bucket {bucket.segment} does not exist on this node") from error
    if not size == copied == bucket.nbytes:
        raise TransferError(f"bucket {bucket.segment} has {size} bytes, expected {bucket.nbytes}")
    return buffer
