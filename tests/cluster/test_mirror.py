"""Copies of checkpoints on an object store: whole or absent, the same ones that stay here, and a run goes on from them."""

import json
import logging
import threading

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cluster.config.recipe import ConfigError
from cluster.records.metrics import read_jsonl
from cluster.run import mirror as mirrors
from cluster.run.checkpoints import Checkpoints
from cluster.run.manifest import damage
from cluster.run.mirror import Mirror, restore
from cluster.run.store import Store, unusable
from tests.cluster.clusters import sample_files, steps, summary
from tests.cluster.fleet import Engine, install
from tests.cluster.test_checkpoints import saved
from tests.cluster.test_cli import invoke
from tests.cluster.test_config import SMALL, problems
from tests.cluster.test_failures import stage, train
from tests.cluster.test_pipeline import trained


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Looks often, and only when it is told to."""
    monkeypatch.setattr(mirrors, "LOOK_S", 0.02)


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    found = f"memory:/{tmp_path}" if request.param == "memory" else f"file://{tmp_path}/far"
    yield found
    fs, root = fsspec.core.url_to_fs(found)
    if fs.exists(root):
        fs.rm(root, recursive=True)


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: it\n")
    (folder / "ledger.jsonl").write_text('{"event": "leased"}\n')
    return folder


def contents(url):
    """{path below the URL: bytes} of what is there."""
    fs, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)} if fs.exists(root) else {}


def copied(url):
    """Steps of whole copies."""
    return sorted(int(name.partition("/")[0][5:]) for name in contents(url) if name.count("/") == 1 and "manifest" in name)


def measured(run_dir, accuracies):
    rows = [json.dumps({"step": step, "accuracy": accuracy}) for step, accuracy in accuracies.items()]
    (run_dir / "evaluations.jsonl").write_text("\n".join(rows) + "\n")


def change(url, name, content):
    fs, root = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{root}/{name}", content)


def test_what_stays_here_is_copied_with_the_records_and_the_rest_is_removed_there(run_dir, url):
    checkpoints = Checkpoints(run_dir, keep=2)
    measured(run_dir, {2: 0.9, 4: 0.1, 6: 0.1, 8: 0.2})
    for step in (2, 4, 6, 8):
        (folder,) = saved(checkpoints, step)
        assert Mirror(Store(url), run_dir, 2).finish()["newest_step"] == step
    assert copied(url) == [2, 6, 8] == checkpoints.steps()
    found = contents(url)
    here = {f"step_8/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert here.items() <= found.items()
    assert found["step_8/run/config.yaml"] == b"name: it\n" and "step_8/run/metrics.jsonl" not in found
    assert Mirror(Store(url), run_dir, 2).finish() == {"url": url, "copied": 0, "failed": 0, "newest_step": 0}


def test_a_copy_that_fails_is_no_copy_is_told_and_made_with_the_next_checkpoint(run_dir, tmp_path, monkeypatch, caplog):
    url, put, broken = f"memory:/{tmp_path}", MemoryFileSystem.put_file, [True]
    calls = []

    def fails(self, here, there, **options):
        calls.append(there)
        if broken and here.endswith("__1_0.distcp"):
            raise OSError("503 slow down")
        put(self, here, there, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", fails)
    checkpoints, mirror = Checkpoints(run_dir, keep=2), Mirror(Store(url), run_dir, 2)
    saved(checkpoints, 2)
    wait_for(lambda: mirror.failed)
    assert contents(url) and not copied(url), "a part of it is there"
    assert f"checkpoints are not copied to {url}: OSError: 503 slow down" in caplog.text
    tries = len(calls)
    threading.Event().wait(0.2)
    assert len(calls) == tries, "the next try comes with the next checkpoint"
    broken.clear()
    saved(checkpoints, 4)
    wait_for(lambda: copied(url) == [2, 4])
    assert mirror.finish() == {"url": url, "copied": 2, "failed": 1, "newest_step": 4}
    order = [name.rpartition("step_4/")[2] for name in calls if "step_4/" in name]
    assert order[-1] == "manifest.json" and order.index("run/manifest.json") < order.index("state.json")


def wait_for(condition):
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it does not come")


def test_a_slow_store_holds_nobody_up_and_what_it_copies_stays_until_it_is_there(run_dir, tmp_path, monkeypatch, caplog):
    url, put, may, began = f"memory:/{tmp_path}", MemoryFileSystem.put_file, threading.Event(), threading.Event()

    def slow(self, here, there, **options):
        began.set()
        assert may.wait(60)
        put(self, here, there, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", slow)
    checkpoints, mirror = Checkpoints(run_dir, keep=2), Mirror(Store(url), run_dir, 2)
    saved(checkpoints, 2)
    assert began.wait(10)
    saved(checkpoints, 4, 6, 8)
    assert checkpoints.steps() == [2, 6, 8]
    assert mirror.finish(0.1)["failed"] == 1 and "have not ended in time" in caplog.text
    may.set()
    mirror._thread.join(30)
    saved(checkpoints, 10)
    assert copied(url) == [6, 8] and checkpoints.steps() == [8, 10]


def test_the_newest_good_copy_is_restored_and_a_flipped_byte_is_named(run_dir, url, tmp_path, caplog):
    saved(Checkpoints(run_dir, keep=3), 2, 4, 6)
    Mirror(Store(url), run_dir, 3).finish()
    fs, root = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{root}/step_6/manifest.json")  # as a copy that was broken off leaves it
    shard = contents(url)["step_4/learner/__0_0.distcp"]
    change(url, "step_4/learner/__0_0.distcp", bytes([shard[0] ^ 1]) + shard[1:])
    (here := tmp_path / "new").mkdir()
    restore(url, here)
    assert f"copy {url}/step_4: learner/__0_0.distcp does not have the content that was saved is skipped" in caplog.text
    assert Checkpoints(here, keep=3).steps() == [2] and damage(here / "checkpoints/step_2") == ""
    assert sorted(p.name for p in here.iterdir()) == ["checkpoints", "config.yaml", "ledger.jsonl"]
    assert (here / "ledger.jsonl").read_bytes() == (run_dir / "ledger.jsonl").read_bytes()
    change(url, "step_2/run/ledger.jsonl", b"{}\n")
    with pytest.raises(
        ConfigError, match="holds no whole checkpoint\n.*step_4: learner/__0.*\n.*step_2: ledger.jsonl does not"
    ):
        restore(url, tmp_path / "another")


def test_a_manifest_that_names_a_file_elsewhere_writes_none(run_dir, url, tmp_path):
    saved(Checkpoints(run_dir, keep=2), 2)
    Mirror(Store(url), run_dir, 2).finish()
    manifest = json.loads(contents(url)["step_2/manifest.json"])
    manifest["files"]["../../../out"] = manifest["files"]["state.json"]
    change(url, "step_2/manifest.json", json.dumps(manifest).encode())
    change(url, "out", contents(url)["step_2/state.json"])
    with pytest.raises(ConfigError, match=r"step_2: manifest.json names '../../../out'"):
        restore(url, tmp_path / "a/b/c/new")
    assert not list(tmp_path.rglob("a/out")) and not list(tmp_path.rglob("b/out"))


@pytest.mark.slow
def test_a_run_restored_from_a_copy_goes_on_to_the_same_end(tmp_path, monkeypatch):
    url = f"file://{tmp_path}/far"
    (half := tmp_path / "far" / "step_3").mkdir(parents=True)
    (half / "state.json").write_text("{}")  # all that a machine had sent before it was taken away
    grpo = stage("grpo", reward="rule", steps=4)
    done, whole = train(tmp_path, Engine(), grpo, checkpoint_every=2, mirror=url)
    assert done.exit_code == 0, done.output
    assert summary(whole)["mirror"] == {"url": url, "copied": 2, "failed": 0, "newest_step": 4}
    assert copied(url) == [2, 4] and not half.exists()
    again = invoke("train", tmp_path / "recipe.yaml", f"output={tmp_path / 'other'}")
    assert again.exit_code == 2 and f"mirror: {url} already holds checkpoints" in again.output
    shard = contents(url)["step_4/learner/__0_0.distcp"]
    change(url, "step_4/learner/__0_0.distcp", bytes([shard[0] ^ 1]) + shard[1:])
    install(monkeypatch, Engine())
    done = invoke("resume", tmp_path / "new", "--from", url)
    assert done.exit_code == 0, done.output
    new = tmp_path / "new"
    assert trained(new) == trained(whole) and len(steps(new)) == 4
    assert {name: rows for name, rows in sample_files(whole).items() if name > "step_2.jsonl"} == sample_files(new)
    assert files_of(new) == files_of(whole)
    assert summary(new)["versions"] == summary(whole)["versions"] and copied(url) == [2, 4]
    assert contents(url)["step_4/learner/__0_0.distcp"] == shard, "the bad copy was replaced"
    assert [row["step"] for row in read_jsonl(new / "evaluations.jsonl")] == [0, 4]
    used = invoke("resume", new, "--from", url)
    assert used.exit_code == 2 and f"{new} is not empty" in used.output


def files_of(run_dir):
    manifest = json.loads((run_dir / "checkpoints/step_4/manifest.json").read_text())
    return {name: entry for name, entry in manifest["files"].items() if name.startswith("learner/__")}


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("bucket/run", "found no protocol; expected one, as in s3://bucket/run"),
        ("sftp://me:hunter2@host/run", "found a password, and config.yaml would keep it"),
        ("az://run?sig=hunter2", "found a password, and config.yaml would keep it"),
    ],
)
def test_a_url_that_is_none_or_holds_a_secret_is_refused_without_showing_it(tmp_path, url, found):
    (tmp_path / "small.yaml").write_text(f"mirror: {url}\n{SMALL}")
    said = "\n".join(problems(tmp_path / "small.yaml"))
    assert f"mirror: {found}" in said and "hunter2" not in said


@pytest.mark.parametrize(("protocol", "found"), [("s4", "Protocol not known: s4"), ("dropbox", "to be installed")])
def test_the_check_knows_what_cannot_be_opened_and_writes_nothing(tmp_path, protocol, found):
    why = unusable(f"{protocol}://{tmp_path}/far")
    assert why.startswith(f"mirror: {protocol}://{tmp_path}/far: ") and found in why
    assert unusable(f"file://{tmp_path}/far") == "" and not list(tmp_path.iterdir())


def test_a_mirror_that_cannot_be_written_to_ends_the_command_before_anything_starts(tmp_path, monkeypatch, caplog):
    done, run_dir = train(tmp_path, None, stage("grpo", reward="rule"), mirror="file:///proc/far")
    assert done.exit_code == 2 and "mirror: file:///proc/far cannot be written to: " in done.output, done.output
    assert not run_dir.exists() and not [r for r in caplog.records if r.levelno >= logging.ERROR]
