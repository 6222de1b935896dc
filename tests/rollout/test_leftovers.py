"""What killed processes leave behind, and that nothing else is removed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from rollout import leftovers
from rollout.leftovers import record_engine, remove_folder, sweep, temporary_folder


@pytest.fixture(autouse=True)
def shm(tmp_path, monkeypatch):
    """A private /dev/shm."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(leftovers, "SHM", folder)
    return folder


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A private folder of temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def dead_pid() -> int:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    return process.pid


def test_a_sweep_removes_what_dead_processes_left_and_nothing_else(shm, dead_pid):
    left = [f"cohort_other-run_{dead_pid}_v3_0", f"cohort_run_{dead_pid}_v3_0"]
    kept = [f"cohort_run_{os.getpid()}_v3_0", "psm_1", f"unrelated_{dead_pid}_v3_0"]
    for name in (*left, *kept):
        (shm / name).touch()
    assert sweep() == left
    assert {path.name for path in shm.iterdir()} == set(kept)


def test_segments_of_a_killed_engine_are_swept_once_its_processes_are_gone(shm, dead_pid):
    for name in ("psm_ours", "psm_others"):
        (shm / name).touch()
    record = record_engine("run", [os.getpid()])
    assert json.loads(record.read_text()) == {"pids": [os.getpid()], "segments": []}
    assert sweep() == []
    orphan = shm / f"cohort_run_{dead_pid}_engine"
    orphan.write_text(json.dumps({"pids": [os.getpid()], "segments": ["psm_ours"]}))
    assert sweep() == []
    orphan.write_text(json.dumps({"pids": [dead_pid], "segments": ["psm_ours"]}))
    assert sweep() == ["psm_ours", orphan.name]
    assert sorted(p.name for p in shm.iterdir()) == [record.name, "psm_others"]


def test_an_engines_memory_has_no_name_once_it_runs_and_gets_one_back_for_an_orderly_end(monkeypatch):
    monkeypatch.setattr(leftovers, "SHM", Path("/dev/shm"))
    segment = shared_memory.SharedMemory(create=True, size=4096)
    path = Path("/dev/shm") / segment.name
    record = record_engine("run", [os.getpid()])
    try:
        assert segment.name in json.loads(record.read_text())["segments"] and not path.exists()
        segment.buf[0] = 7
        assert segment.buf[0] == 7
    finally:
        leftovers.before_shutdown(record)
        segment.close()
        segment.unlink()
        record.unlink()
    assert not path.exists()


def test_a_semaphore_of_a_killed_engine_is_swept_though_it_is_mapped_under_another_name(monkeypatch):
    monkeypatch.setattr(leftovers, "SHM", Path("/dev/shm"))
    code = (
        "import multiprocessing, time\nheld = multiprocessing.get_context('spawn').Semaphore()\n"
        "print(held._semlock.name, flush=True)\ntime.sleep(600)"
    )
    engine = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    name = "sem." + engine.stdout.readline().strip().removeprefix("/")
    record = record_engine("run", [engine.pid])
    assert json.loads(record.read_text())["segments"] == [name] and (Path("/dev/shm") / name).exists()
    os.killpg(engine.pid, signal.SIGKILL)  # with the process by which Python would remove it
    engine.wait(10)
    assert leftovers.remove_engine(record) == [name, record.name]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_another_user_left_stays(shm, temporary, dead_pid):
    for path in (shm / f"cohort_run_{dead_pid}_v3_0", temporary / f"cohort_sandbox_{dead_pid}_x"):
        path.touch()
        os.chown(path, 65534, 65534)
    assert sweep() == []
    assert len(list(shm.iterdir())) == len(list(temporary.iterdir())) == 1


def test_what_cannot_be_removed_stays_and_stops_nothing(shm, temporary, dead_pid, monkeypatch, caplog):
    (shm / f"cohort_a_{dead_pid}_engine").write_text("not a record")
    (shm / f"cohort_b_{dead_pid}_engine").write_text("{}")
    (shm / f"cohort_c_{dead_pid}_v1_0").touch()
    unlink = Path.unlink

    def refuse(path, **options):
        if path.name.startswith("cohort_c"):
            raise PermissionError(1, "Operation not permitted")
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    (shm / f"cohort_d_{dead_pid}_v1_0").touch()
    assert sweep() == [f"cohort_d_{dead_pid}_v1_0"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3


def test_folders_of_a_killed_process_are_swept_and_those_of_others_are_not(temporary):
    program = (
        "import os; from rollout.leftovers import temporary_folder as new; (new('engine') / 'socket').touch();"
        " (new('sandbox') / 'a' / 'b').mkdir(parents=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(temporary)}, timeout=60)
    assert killed.returncode == -9
    left = sorted(path.name for path in temporary.iterdir())
    assert [name.split("_")[1] for name in left] == ["engine", "sandbox"]
    ours, unrelated = temporary_folder("sandbox"), temporary / "cohort_notes"
    unrelated.mkdir()
    assert sweep() == left
    assert set(temporary.iterdir()) == {ours, unrelated}


@pytest.mark.slow
def test_a_tree_deeper_than_python_can_follow_is_removed(temporary):
    folder = temporary_folder("sandbox")
    dig = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')"
    subprocess.run([sys.executable, "-c", dig], cwd=folder, check=True, timeout=60)
    remove_folder(folder)
    assert list(temporary.iterdir()) == []
