"""Buckets in shared memory: what is received is what was published, or nothing is."""

import dataclasses
import json
import os
import stat

import pytest
import torch

from rollout import leftovers
from rollout.weights.staging import Staging
from rollout.weights.transfer import Manifest, TransferError, read_bucket, release, write_bucket, write_buckets

TENSORS = {
    "embed": torch.arange(600, dtype=torch.float32).reshape(20, 30),
    "norm": torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16),
    "scale": torch.tensor(7.0),
    "columns": torch.arange(12.0).reshape(3, 4).t(),
}
EXPECTED = {n: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in TENSORS.items()}


@pytest.fixture(autouse=True)
def shm(tmp_path, monkeypatch):
    """A private /dev/shm."""
    monkeypatch.setattr(leftovers, "SHM", tmp_path)
    return tmp_path


@pytest.fixture
def publish(weight_source):
    def publish(tensors=TENSORS, **options) -> Manifest:
        return write_buckets(weight_source(tensors), **{"prefix": "run", "version": 3, "bucket_bytes": 1024, **options})

    return publish


def edit(manifest, name, /, **changes) -> Manifest:
    tensors = tuple(dataclasses.replace(e, **changes) if e.name == name else e for e in manifest.tensors)
    return dataclasses.replace(manifest, tensors=tensors)


def test_every_tensor_arrives_bit_for_bit(publish):
    manifest = Manifest.from_dict(json.loads(json.dumps(publish().to_dict())))
    staging = Staging(EXPECTED)
    staging.receive(manifest)
    assert list(staging.tensors) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert staging.tensors[name].dtype == tensor.dtype
        assert staging.tensors[name].equal(tensor)
    assert staging.digest == manifest.digest


def test_segments_are_readable_by_their_owner_only_whatever_the_umask(publish, shm):
    before = os.umask(0)
    try:
        manifest = publish()
        write_bucket(f"cohort_other_{os.getpid()}_v3_0", read_bucket(manifest.buckets[0].segment))
    finally:
        os.umask(before)
    assert [stat.filemode(path.stat().st_mode) for path in shm.iterdir()] == ["-rw-------"] * 3


def test_buckets_are_filled_to_their_size_and_a_larger_tensor_has_its_own(publish):
    manifest = publish()
    assert [(e.bucket, e.offset) for e in manifest.tensors] == [(0, 0), (1, 0), (1, 64), (1, 128)]
    assert [b.nbytes for b in manifest.buckets] == [2400, 128 + 48]
    assert [b.segment for b in manifest.buckets] == [f"cohort_run_{os.getpid()}_v3_{i}" for i in (0, 1)]


def test_a_tensor_with_two_names_is_written_once_and_staged_under_both(publish, shm):
    manifest = publish({**TENSORS, "head": TENSORS["embed"]})
    first, *_, second = manifest.tensors
    assert (second.name, second.bucket, second.offset, second.blake3) == ("head", 0, 0, first.blake3)
    assert sum(path.stat().st_size for path in shm.iterdir()) == 2400 + 128 + 48
    staging = Staging(EXPECTED | {"head": EXPECTED["embed"]})
    staging.receive(manifest)
    assert staging.tensors["head"].equal(TENSORS["embed"]) and staging.digest == manifest.digest
    copy = publish({**TENSORS, "head": TENSORS["embed"].clone()})
    assert copy.digest == manifest.digest and copy.tensors[-1].bucket == 2


def test_what_is_staged_no_longer_depends_on_the_segments(publish, shm):
    manifest = publish()
    staging = Staging()
    staging.receive(manifest)
    for path in shm.iterdir():
        path.write_bytes(b"\xff" * path.stat().st_size)
    release(manifest)
    assert list(shm.iterdir()) == []
    assert staging.tensors["embed"].equal(TENSORS["embed"])


def test_the_digest_identifies_the_content_and_not_where_it_lies(publish):
    digest = publish().digest
    assert publish(version=9, bucket_bytes=2**20, prefix="other").digest == digest
    assert publish({**TENSORS, "scale": torch.tensor(7.0000005)}).digest != digest
    assert publish({**TENSORS, "embed": TENSORS["embed"].reshape(30, 20)}).digest != digest
    assert publish(dict(reversed(TENSORS.items()))).digest != digest


@pytest.mark.parametrize("name", TENSORS)
def test_one_flipped_bit_is_found_and_named(publish, shm, name):
    manifest = publish()
    entry = next(e for e in manifest.tensors if e.name == name)
    path = shm / manifest.buckets[entry.bucket].segment
    data = bytearray(path.read_bytes())
    data[entry.offset + entry.nbytes - 1] ^= 1
    path.write_bytes(data)
    staging = Staging(EXPECTED)
    with pytest.raises(TransferError, match=f"tensor '{name}' in {path.name}: received blake3"):
        staging.receive(manifest)
    assert staging.tensors == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: edit(m, "norm", name="embed"), "'embed' is in the manifest twice"),
        (lambda m: edit(m, "norm", bucket=2), "'norm' is in bucket 2 of 2"),
        (lambda m: edit(m, "norm", nbytes=8), "'norm': 8 bytes at 0 is no"),
        (lambda m: edit(m, "norm", offset=176), "'norm' ends outside cohort_run_"),
        (lambda m: edit(m, "norm", offset=-2), "'norm' ends outside cohort_run_"),
        (lambda m: edit(m, "norm", dtype="Tensor"), "'norm' has the unknown dtype 'Tensor'"),
        (lambda m: edit(m, "norm", dtype="float16"), r"'norm' is \('float16', \(3,\)\), expected \('bfloat16', \(3,\)\)"),
        (lambda m: edit(m, "columns", shape=(3, 4)), r"'columns' is .* expected"),
        (lambda m: edit(m, "scale", name="other"), "'other' is not a tensor of this model"),
        (lambda m: dataclasses.replace(m, tensors=m.tensors[:-1]), "'columns' is missing"),
        (lambda m: dataclasses.replace(m, tensors=(*m.tensors[:2], m.tensors[3], m.tensors[2])), "received digest"),
        (lambda m: dataclasses.replace(m, digest="0" * 64), "version 3: received digest"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_with_the_tensor_named(publish, change, message):
    staging = Staging(EXPECTED)
    with pytest.raises(TransferError, match=message):
        staging.receive(change(publish()))
    assert staging.tensors == {}


def test_a_lost_or_cut_bucket_is_refused_by_name(publish, shm):
    manifest = publish()
    path = shm / manifest.buckets[1].segment
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TransferError, match=f"bucket {path.name} has 175 bytes, expected 176"):
        Staging().receive(manifest)
    path.unlink()
    with pytest.raises(TransferError, match=f"bucket {path.name} does not exist on this node"):
        Staging().receive(manifest)


def test_a_failed_receive_forgets_the_version_before(publish):
    staging = Staging()
    staging.receive(publish())
    with pytest.raises(TransferError):
        staging.receive(dataclasses.replace(publish(), digest=""))
    assert (staging.tensors, staging.digest) == ({}, "")


@pytest.mark.parametrize("data", [{}, {"version": 1, "buckets": [{}], "tensors": [], "digest": ""}])
def test_what_is_not_a_manifest_is_refused(data):
    with pytest.raises(TransferError, match="not a weight manifest"):
        Manifest.from_dict(data)


@pytest.mark.parametrize("segment", ["../etc/passwd", "/etc/passwd", "psm_1234", "cohort_run_1_v0_0/../x", ""])
def test_only_our_own_segments_are_read_and_written(segment):
    with pytest.raises(TransferError, match="not the name of a weight segment"):
        read_bucket(segment)
    with pytest.raises(TransferError, match="not the name of a weight segment"):
        write_bucket(segment, b"")


def test_a_source_that_breaks_off_leaves_no_segment(shm, weight_source):
    class Breaking(weight_source):
        def __iter__(self):
            yield "embed", self.tensors["embed"]
            yield "norm", self.tensors["norm"]
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_buckets(Breaking(TENSORS), prefix="run", version=0, bucket_bytes=64)
    assert list(shm.iterdir()) == []


@pytest.mark.parametrize("yielded", [{"embed": torch.zeros(1)}, {}, {**TENSORS, "more": torch.zeros(1)}])
def test_a_source_that_is_not_its_metadata_is_refused(weight_source, yielded):
    class Lying(weight_source):
        def metadata(self):
            return weight_source(TENSORS).metadata()

    with pytest.raises(TransferError, match="metadata declares"):
        write_buckets(Lying(yielded), prefix="run", version=0)


def test_a_bucket_can_be_materialised_elsewhere(publish, shm):
    manifest = publish()
    carried = {b.segment: read_bucket(b.segment) for b in manifest.buckets}
    release(manifest)
    for segment, data in carried.items():
        write_bucket(segment, data)
    staging = Staging(EXPECTED)
    staging.receive(manifest)
    assert staging.digest == manifest.digest
