"""Checkpoints are complete or absent, the newest good ones stay, and what is wrong with one is named."""

import errno
import json
import os
import pickle
import shutil
from types import SimpleNamespace

import pytest

from cluster.config.recipe import ConfigError
from cluster.run.checkpoints import CheckpointFailed, Checkpoints
from cluster.run.manifest import damage

SHARDS = {"__0_0.distcp": 40, "__1_0.distcp": 40, ".metadata": 1}


class Learner:
    """Writes what two ranks write, all of it or not, and says what should be there; `behind`: only when it is waited for."""

    def __init__(self, write=None, behind=False):
        self.write, self.behind, self.pending = write or files(), behind, None

    def save(self, folder, written):
        self.pending = lambda: written(self.write(folder))
        if not self.behind:
            self.writing(True)

    def writing(self, wait):
        if self.pending and wait:
            pending, self.pending = self.pending, None
            pending()
        return self.pending is not None


def files(shards=SHARDS, leave_out=(), short=()):
    def write(folder):
        folder.mkdir()
        for name, size in shards.items():
            if name not in leave_out:
                (folder / name).write_bytes(b"w" * (size - (name in short)))
        return shards

    return write


@pytest.fixture
def store(tmp_path):
    return Checkpoints(tmp_path, keep=2)


def break_file(folder, name="learner/__1_0.distcp"):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:7] + bytes([content[7] ^ 1]) + content[8:])


def saved(store, *steps):
    for step in steps:
        store.save(step, Learner(), {"step": step})
    return [store.root / f"step_{step}" for step in steps]


def test_the_checkpoint_just_written_stays_and_damaged_ones_do_not_count(store):
    store.keep = 3
    saved(store, 2, 4, 6)
    for step in (4, 6):
        break_file(store.root / f"step_{step}")
    store.keep = 2
    assert store.newest()[1] == {"step": 2}
    saved(store, 3)
    assert store.newest()[1] == {"step": 3}
    assert {2, 3} <= set(store.steps())
    break_file(store.root / "step_3")
    assert store.newest()[1] == {"step": 2}
    saved(store, 3, 5)
    assert store.steps() == [3, 5], "older and damaged ones go, once two newer ones are good"


def test_newest_is_by_the_time_of_writing_not_by_the_step(store):
    saved(store, 8, 3)
    assert store.newest()[1] == {"step": 3}
    assert store.newest(8)[1] == {"step": 8}


@pytest.mark.parametrize("name", ["manifest.json", "state.json", *(f"learner/{shard}" for shard in SHARDS)])
def test_a_flipped_bit_and_a_missing_file_are_named_whichever_file_it_is(store, name):
    first, second = saved(store, 1, 2)
    at = 0 if name.endswith(".metadata") else len((second / name).read_bytes()) // 2
    content = bytearray((second / name).read_bytes())
    content[at] ^= 1
    (second / name).write_bytes(content)
    assert damage(second).startswith(name)
    assert store.newest()[1] == {"step": 1}
    (first / name).unlink()
    with pytest.raises(ConfigError) as refused:
        store.newest()
    assert f"step_1: {name} is missing" in str(refused.value) and f"step_2: {name}" in str(refused.value)


def test_no_checkpoint_at_all_is_none(store):
    assert store.newest() is None
    saved(store, 1)
    assert store.newest(2) is None


@pytest.mark.parametrize(("fault", "why"), [("leave_out", "is missing"), ("short", "has 39 of at least 40 bytes")])
def test_a_shard_that_a_rank_wrote_elsewhere_is_noticed_before_the_manifest_is_written(store, fault, why):
    saved(store, 1)
    with pytest.raises(CheckpointFailed, match=rf"learner/__1_0.distcp {why}.*file system that all of them share.*steps 1"):
        store.save(2, Learner(files(**{fault: ["__1_0.distcp"]})), {"step": 2})
    assert [p.name for p in store.root.iterdir()] == ["step_1"]
    assert store.newest()[1] == {"step": 1}


def torn(folder):
    """As torch fails on a full disk, which it does not say."""
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(b"w" * 10)
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")


def full(folder):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("write", [torn, full])
def test_a_full_disk_is_said_with_path_and_room_and_the_old_checkpoint_is_intact(store, monkeypatch, write):
    saved(store, 1)
    if write is torn:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_200_000))
    with pytest.raises(CheckpointFailed, match=r"step 2: disk full: .*checkpoints.* MB free; .* intact \(steps 1\)"):
        store.save(2, Learner(write), {})
    assert [p.name for p in store.root.iterdir()] == ["step_1"]
    assert store.newest()[1] == {"step": 1}


def test_other_failures_are_not_put_down_to_the_disk(store):
    with pytest.raises(RuntimeError, match="unexpected pos"):
        store.save(2, Learner(torn), {})


def test_what_a_killed_save_left_is_removed_by_the_next(store):
    (store.root / ".step_7.tmp/learner").mkdir(parents=True)
    saved(store, 9)
    assert [p.name for p in store.root.iterdir()] == ["step_9"]
    assert json.loads((store.root / "step_9/manifest.json").read_text())["files"].keys() == {
        "state.json",
        *(f"learner/{name}" for name in SHARDS),
    }


def measured(store, **accuracies):
    rows = [{"step": int(name[1:]), "accuracy": value} for name, value in accuracies.items()]
    (store.run_dir / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_best_one_stays_beside_the_newest_and_the_manifests_name_it(store):
    assert store.best() is None
    saved(store, 1, 2)
    measured(store, s1=0.2, s2=0.5, s3=0.4)
    saved(store, 3)
    measured(store, s1=0.2, s2=0.5, s3=0.4, s4=None)
    saved(store, 4, 5)
    assert store.steps() == [2, 4, 5] and store.best() == (store.root / "step_2", {"step": 2})
    heads = [json.loads((store.root / f"step_{n}/manifest.json").read_text()) for n in store.steps()]
    assert [(head["accuracy"], head["best"]) for head in heads] == [(None, None), (None, 2), (None, 2)]
    measured(store, s2=0.5, s5=0.5, s6=0.1)
    saved(store, 6, 7)
    assert store.steps() == [5, 6, 7], "of equals the newest"
    assert json.loads((store.root / "step_6/manifest.json").read_text())["accuracy"] == 0.1
    break_file(store.root / "step_5")
    assert store.best()[1] == {"step": 6}
    saved(store, 8)
    assert store.steps() == [6, 7, 8]


@pytest.mark.parametrize("content", [None, "not json\n"])
def test_evaluations_that_cannot_be_read_are_no_reason_to_fail(store, content):
    path = store.run_dir / "evaluations.jsonl"
    path.mkdir() if content is None else path.write_text(content)
    saved(store, 1, 2, 3)
    assert store.steps() == [2, 3] and store.best() is None


def test_what_is_written_behind_exists_when_all_of_it_is_there_and_the_next_waits_for_it(store):
    learner = Learner(behind=True)
    store.save(1, learner, {"step": 1})
    assert (store.steps(), store.newest_step) == ([], 0)
    store.finish(wait=False)
    assert store.steps() == []
    store.save(2, learner, {"step": 2})
    assert (store.steps(), store.newest_step) == ([1], 1)
    learner.writing(True)
    assert (store.steps(), store.newest_step) == ([1, 2], 2), "whether or not it was asked about"
    store.finish()
    store.finish()
    assert store.newest() == (store.root / "step_2", {"step": 2})


@pytest.mark.parametrize("ask", ["finish", "save"])
def test_what_failed_behind_is_raised_at_the_next_boundary_and_the_old_ones_are_intact(store, ask):
    saved(store, 1)
    store.save(2, Learner(full, behind=True), {})
    with pytest.raises(CheckpointFailed, match=r"checkpoint of step 2: disk full: .*step_2.*; .* intact \(steps 1\)"):
        store.finish() if ask == "finish" else store.save(3, Learner(), {})
    assert [p.name for p in store.root.iterdir()] == ["step_1"] and store.newest_step == 1
    saved(store, 3)
    assert store.steps() == [1, 3]


def test_a_learner_writes_with_what_can_be_sent_to_it(store):
    """Who writes behind is another process, on a node of its own perhaps."""
    sent = []
    remote = SimpleNamespace(save=lambda *args: sent.append(pickle.dumps(args)), writing=lambda wait: True)
    store.save(1, remote, {})
    folder, written = pickle.loads(sent[0])
    written(files()(folder))
    assert store.steps() == [1]


def test_one_that_cannot_be_removed_is_warned_of_and_fails_no_other(tmp_path, monkeypatch, caplog):
    checkpoints, remove, busy = Checkpoints(tmp_path, keep=1), shutil.rmtree, []

    def rmtree(path, *args, **options):
        if busy and path.name == "step_1":
            raise OSError(errno.EBUSY, "in use")
        remove(path, *args, **options)

    monkeypatch.setattr("cluster.run.checkpoints.shutil.rmtree", rmtree)
    checkpoints.save(1, Learner(), {})
    busy.append(True)
    checkpoints.save(2, Learner(), {})
    assert checkpoints.steps() == [1, 2] and "step_1 cannot be removed" in caplog.text
    busy.clear()
    checkpoints.save(3, Learner(), {})
    assert checkpoints.steps() == [3]


def test_how_long_one_took_is_from_its_beginning_until_it_was_whole(store):
    learner = Learner(behind=True)
    store.save(1, learner, {"step": 1})
    (begun,) = store.root.glob(".step_1*/state.json")
    os.utime(begun, (begun.stat().st_atime, begun.stat().st_mtime - 40))
    learner.writing(True)
    assert store.seconds == 0
    store.finish()
    assert 40 <= store.seconds < 50
