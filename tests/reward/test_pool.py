"""The pool of judges that can be killed: whatever a judge does, its size is the same afterwards and nothing is scored by
accident."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from reward.judging.pool import KILLED, Pool

pytestmark = pytest.mark.slow

JUDGES = "tests/reward/judges.py"


@pytest.fixture(scope="module")
def pool():
    with Pool(f"{JUDGES}:judge", workers=2, seconds=2, memory_gb=1) as made:
        yield made


def rows(*doings):
    return [{"do": do, "value": i} for i, do in enumerate(doings)]


def test_values_come_in_the_order_of_the_rows(pool):
    outcomes = pool([{"do": "", "value": i} for i in range(1000)])
    assert [o.value for o in outcomes] == list(range(1000)) and {o.status for o in outcomes} == {"score"}
    assert all(o.seconds >= 0 for o in outcomes) and pool([]) == []


@pytest.mark.parametrize(
    ("do", "status", "reason"),
    [
        ("hang", "killed", "no answer within 2 s"),
        ("power", "killed", "no answer within 2 s"),
        ("memory", "killed", "memory limit"),
        ("recursion", "error", "RecursionError"),
        ("fork", "error", "PermissionError"),
        ("segfault", "killed", "signal SIGSEGV"),
        ("exit", "error", "SystemExit"),
        ("leave", "killed", "exit status 3"),
        ("flood the answer", "killed", "more than 4000000 bytes"),
        ("raise", "error", "KeyError: 2"),
        ("object", "error", "not JSON serializable"),
    ],
)
def test_a_hostile_row_has_no_score_and_the_others_have_theirs(pool, do, status, reason):
    outcomes = pool(rows("", "", do, "", "thread"))
    assert [o.value for o in outcomes] == [0, 1, None, 3, 4] and pool.size == 2
    bad = outcomes.pop(2)
    assert bad.status == status and reason in bad.reason and {o.status for o in outcomes} == {"score"}
    assert bad.reason.startswith(KILLED) == (status == "killed" and do != "memory")


def test_what_a_judge_prints_goes_nowhere(pool, capfd):
    assert [o.value for o in pool(rows("flood", ""))] == [0, 1] and capfd.readouterr() == ("", "")


def test_a_judge_that_ran_out_of_memory_is_replaced_and_one_that_died_idle_costs_no_row(pool):
    kills = pool.kills
    outcomes = pool(rows("memory", "", "memory", "", ""))
    assert [(o.status, o.value) for o in outcomes][1::2] == [("score", 1), ("score", 3)] and pool.kills == kills + 2
    for process in pool._processes:
        os.kill(process._process.pid, signal.SIGKILL)
        process._process.wait(timeout=10)
    assert pool.size == 0
    assert [o.value for o in pool(rows(*[""] * 20))] == list(range(20)) and pool.size == 2


def test_many_hostile_rows_in_a_row(pool):
    kills = pool.kills
    outcomes = pool(rows(*["leave"] * 8, ""))
    assert [o.status for o in outcomes] == ["killed"] * 8 + ["score"]
    assert pool.kills == kills + 8 and pool.size == 2


def test_a_batched_judge_answers_for_all_rows_at_once_and_a_killed_batch_is_judged_row_by_row():
    with Pool(f"{JUDGES}:batch", workers=1, seconds=2, memory_gb=1, adapter=f"{JUDGES}:many") as pool:
        assert [o.value for o in pool(rows("", "", ""))] == [0, 1, 2]
        assert [(o.status, o.value) for o in pool(rows("", "leave", ""))] == [("score", 0), ("killed", None), ("score", 2)]
        assert [(o.status, o.value) for o in pool(rows("memory", ""))] == [("killed", None), ("score", 1)]
        short = pool(rows("short", ""))
        assert {o.status for o in short} == {"error"} and "returned 1 values for 2 rows" in short[0].reason
        assert ["KeyError" in o.reason for o in pool(rows("", "raise"))] == [True, True] and pool.size == 1


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("tests/reward/judges.py:nothing", "has no attribute 'nothing'"),
        ("nowhere.py:judge", "nowhere.py"),
        ("no.such.module:judge", "No module named"),
    ],
)
def test_a_judge_that_cannot_be_loaded_is_refused_with_the_traceback(target, found):
    with pytest.raises(ValueError, match="cannot be loaded") as refused:
        Pool(target, workers=1, seconds=2, memory_gb=1)
    assert found in str(refused.value)


OWNER = """
import sys, time
from reward.judging.pool import Pool
pool = Pool(sys.argv[1], workers=2, seconds=60, memory_gb=1)
print(*[p._process.pid for p in pool._processes], flush=True)
pool([{"do": "hang"}, {"do": "power"}])
"""


def test_judges_die_with_a_killed_owner_even_in_the_middle_of_a_row():
    owner = subprocess.Popen([sys.executable, "-c", OWNER, f"{JUDGES}:judge"], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(1)
    owner.kill()
    owner.wait(timeout=10)
    owner.stdout.close()
    until = time.monotonic() + 20
    while any(map(running, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(running, pids))


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_closing_leaves_no_process():
    pool = Pool(f"{JUDGES}:judge", workers=2, seconds=2, memory_gb=1)
    pids = [process._process.pid for process in pool._processes]
    pool.close()
    assert pool.size == 0 and not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_judging_does_not_depend_on_the_locale_or_the_thread(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    rows = [
        {"output": f"#### {text}", "gold": gold, "answer_format": "hash"}
        for text, gold in (("十八", "18"), (r"\sqrt8", r"2\sqrt2"))
    ]
    found = []

    def work():
        with Pool("reward.judging.rule:judge", workers=1, seconds=20, memory_gb=2) as pool:
            found.extend(outcome.value["correct"] for outcome in pool(rows))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert found == [True, True]


def test_a_wave_of_hanging_judgements_ends_soon_and_without_a_score():
    began = time.monotonic()
    with Pool(f"{JUDGES}:judge", workers=2, seconds=0.4, memory_gb=1) as pool:
        outcomes = pool(rows(*["hang"] * 60, ""))
        assert pool.size == 2 and [o.value for o in pool(rows("", ""))] == [0, 1], "the next wave has all its time"
    assert time.monotonic() - began < 60
    assert {o.status for o in outcomes} == {"killed"} and all(o.reason.startswith(KILLED) for o in outcomes)
    tried = [o for o in outcomes if "no answer within 0.4 s" in o.reason]
    assert len(tried) == 16 and outcomes[-1].reason.startswith("killed: not tried: 16 of 16 judgements")


def test_rows_that_can_be_judged_are_judged_among_many_that_hang():
    with Pool(f"{JUDGES}:judge", workers=2, seconds=0.4, memory_gb=1) as pool:
        outcomes = pool(rows(*["", "", "hang"] * 17))
    assert [o.value for o in outcomes] == [None if i % 3 == 2 else i for i in range(51)]
