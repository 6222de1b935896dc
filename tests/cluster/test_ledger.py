import json
import pickle
import random
import tracemalloc
from types import SimpleNamespace

import pytest

from cluster.records.ledger import NEXT, Ledger, LedgerError, Lives, history, incarnations

GROUP = {"grpo/0": [0, 1]}


def life(ledger, groups, attempt=0):
    for event in ("leased", "generated", "scored", "trained"):
        ledger.record(event, groups, attempt=attempt)


def test_a_sample_is_trained_exactly_once(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    life(ledger, GROUP)
    with pytest.raises(LedgerError, match=r"grpo/0\[0\]: trained .* after the end"):
        ledger.record("trained", GROUP)
    with pytest.raises(LedgerError, match="after the end"):
        ledger.record("leased", GROUP)
    assert [line["event"] for line in history(tmp_path / "ledger.jsonl")] == ["leased", "generated", "scored", "trained"]


@pytest.mark.parametrize("skipped", [("generated",), ("scored",), ("trained",)])
def test_no_state_can_be_skipped(tmp_path, skipped):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    order = ["leased", "generated", "scored", "trained"]
    for event in order[: order.index(skipped[0]) - 1]:
        ledger.record(event, GROUP)
    with pytest.raises(LedgerError):
        ledger.record(skipped[0], GROUP)


def test_a_late_answer_of_an_expired_attempt_is_refused(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.record("leased", GROUP)
    ledger.record("leased", GROUP, attempt=1)
    with pytest.raises(LedgerError, match=r"generated \(attempt 0\) after leased \(attempt 1\)"):
        ledger.record("generated", GROUP, attempt=0)
    ledger.record("generated", GROUP, attempt=1)


def test_lines_past_the_checkpoint_are_abandoned_and_their_ordinals_can_be_trained_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    life(ledger, {"grpo/0": [0]})
    offset = ledger.offset()
    life(ledger, {"grpo/1": [0]})
    ledger.record("leased", {"grpo/2": [0]})
    ledger.close()

    again = Ledger(path, incarnation=incarnations(path), offset=offset)
    with pytest.raises(LedgerError):
        again.record("leased", {"grpo/0": [0]})
    life(again, {"grpo/1": [0]})
    lines = list(history(path))
    assert [(x["event"], list(x["groups"]), x["incarnation"]) for x in lines if x["event"] == "trained"] == [
        ("trained", ["grpo/0"], 0),
        ("trained", ["grpo/1"], 1),
    ]
    assert all("grpo/2" not in x["groups"] for x in lines)


def test_a_line_cut_off_by_a_kill_is_no_line_and_spoils_no_later_one(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.record("leased", GROUP)
    offset = ledger.offset()
    ledger.close()
    with path.open("ab") as file:
        file.write(b'{"incarnation": 0, "event": "gener')
    again = Ledger(path, incarnation=1, offset=offset)
    life(again, {"grpo/5": [0]})
    assert [x["event"] for x in history(path)] == ["leased", "leased", "generated", "scored", "trained"]
    assert all(json.loads(line) for line in path.read_text().splitlines() if line.endswith("}"))


def test_two_crashes_leave_one_history(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger, offset = Ledger(path), 0
    for incarnation in range(3):
        life(ledger, {f"grpo/{incarnation}": [0]})
        offset = ledger.offset()
        ledger.record("leased", {f"grpo/{incarnation + 1}": [0]})
        ledger.close()
        ledger = Ledger(path, incarnation=incarnation + 1, offset=offset)
    trained = [g for x in history(path) if x["event"] == "trained" for g in x["groups"]]
    assert trained == ["grpo/0", "grpo/1", "grpo/2"]
    assert incarnations(path) == 4


class Naive:
    """Every sample that ever was, in one dictionary."""

    def __init__(self):
        self.last = {}

    def allows(self, event, group, index, attempt):
        state, held = self.last.get((group, index), ("", -1))
        if not state:
            return event == "leased"
        return event in NEXT.get(state, ()) and attempt == held + (event == "leased")


EVENTS = ("leased", "generated", "scored", "trained", "dropped")


def step_of(rng, stage, ordinals, size=3):
    """(event, groups, attempt, ends) of a step, in an order in which the loop may write them: re-issues, refills of groups
    without spread, samples without a score; the groups out of order until the step ends them together."""
    last, order = {}, rng.sample(ordinals, len(ordinals))
    for n in order:
        for refill in ("", ".1", ".2")[: rng.randint(1, 3)]:
            if refill:
                yield "dropped", {last[n][0]: range(size)}, last[n][1], False
            group, attempt = f"{stage}/{n}{refill}", rng.randint(0, 2)
            for again in range(attempt + 1):
                yield "leased", {group: range(size)}, again, False
            yield "generated", {group: range(size)}, attempt, False
            yield "scored", {group: range(size)}, attempt, False
            last[n] = group, attempt
    for n in ordinals:
        group, attempt = last[n]
        bad = rng.randint(0, size)
        yield "trained", {group: range(bad)}, attempt, True
        yield "dropped", {group: range(bad, size)}, attempt, True


@pytest.mark.parametrize("seed", range(20))
def test_what_is_held_in_little_memory_refuses_whatever_a_record_of_everything_would(seed):
    rng, lives, naive, seen = random.Random(seed), Lives(), Naive(), []
    stages = ("sft", "grpo", "grpo/initial")
    moves = [m for stage in stages for t in range(6) for m in step_of(rng, stage, range(4 * t, 4 * t + 4))]
    refused = 0
    for event, groups, attempt, ends in moves:
        assert all(naive.allows(event, group, index, attempt) for group, indices in groups.items() for index in indices)
        lives.apply(event, groups, attempt, ends=ends)
        for group, indices in groups.items():
            naive.last |= {(group, index): (event, attempt) for index in indices}
            seen += [(group, index) for index in indices]
        for group, index in rng.sample(seen, min(len(seen), 10)):
            wrong, other = rng.choice(EVENTS), rng.randint(0, 3)
            if not naive.allows(wrong, group, index, other):
                refused += 1
                with pytest.raises(LedgerError):
                    lives.apply(wrong, {group: [index]}, other)
    assert refused > 1000
    assert not lives.under_way() and {s for s, _ in naive.last.values()} == {"trained", "dropped"}
    assert len(pickle.dumps(lives)) < 400


def test_an_ordinal_is_not_trained_by_two_of_its_groups(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for group in ("grpo/0", "grpo/0.1"):
        for event in ("leased", "generated", "scored"):
            ledger.record(event, {group: [0, 1]})
    ledger.record("trained", {"grpo/0": [0]}, step=1)
    with pytest.raises(LedgerError, match=r"grpo/0.1\[0\]: trained .* after the end of its ordinal by another group"):
        ledger.record("trained", {"grpo/0.1": [0]}, step=1)


def test_a_driver_takes_up_what_was_sampled_ahead_and_leases_the_rest_anew(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for group in ("grpo/0", "grpo/1"):
        ledger.record("leased", {group: [0]})
        ledger.record("leased", {group: [0]}, attempt=1)
        ledger.record("generated", {group: [0]}, attempt=1)
        ledger.record("scored", {group: [0]}, attempt=1)
    life(ledger, {"grpo/2": [0]})
    offset = ledger.offset()
    ledger.close()
    for incarnation in (1, 2):
        again = Ledger(path, incarnation=incarnation, offset=offset)
        again.take_up([SimpleNamespace(group_id="grpo/0", index=0)])
        with pytest.raises(LedgerError, match="after generated"):
            again.record("leased", {"grpo/0": [0]})
        with pytest.raises(LedgerError, match="after the end|after trained"):
            again.record("leased", {"grpo/2": [0]})
        with pytest.raises(LedgerError, match=r"grpo/7\[0\]: resumed, and not under way"):
            again.take_up([SimpleNamespace(group_id="grpo/7", index=0)])
        again.record("scored", {"grpo/0": [0]}, attempt=1)
        life(again, {"grpo/1": [0]})
        again.close()


@pytest.mark.parametrize("groups", [{"grpo": [0]}, {"grpo/x": [0]}, {"/3": [0]}, {"grpo/0": [0, 1, 0]}])
def test_what_is_no_group_or_names_a_member_twice_is_refused_and_not_written(tmp_path, groups):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(LedgerError):
        ledger.record("leased", groups)
    assert (tmp_path / "ledger.jsonl").read_bytes() == b""


@pytest.mark.slow
def test_neither_a_long_run_nor_reading_it_again_takes_memory(tmp_path):
    """100,000 samples in 625 steps, and in every fourth a group is refilled."""
    path, per_step, size = tmp_path / "ledger.jsonl", 20, 8
    ledger, samples = Ledger(path), range(size)
    for step in range(100_000 // per_step // size):
        groups = {f"grpo/{n}": samples for n in range(step * per_step, step * per_step + per_step)}
        if step % 4 == 0:
            for event in ("leased", "generated", "scored", "dropped"):
                ledger.record(event, {f"grpo/{step * per_step}": samples})
            groups = {f"{g}.1" if i == 0 else g: x for i, (g, x) in enumerate(groups.items())}
        for event in ("leased", "generated", "scored"):
            ledger.record(event, groups)
        ledger.record("trained", groups, step=step + 1)
        assert len(pickle.dumps(ledger._lives)) < 1000
        if step == 62:
            tenth = ledger.offset()
    offset = ledger.offset()
    ledger.record("leased", {"grpo/12500": samples})
    ledger.close()

    short = tmp_path / "short.jsonl"
    short.write_bytes(path.read_bytes()[:tenth])
    tracemalloc.start()
    Ledger(short, incarnation=incarnations(short), offset=tenth).close()
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 100_000 < tenth, "bytes, at the most at a time"

    again = Ledger(path, incarnation=incarnations(path), offset=offset)
    with pytest.raises(LedgerError, match="after the end"):
        again.record("leased", {"grpo/12499": [0]})
    again.record("leased", {"grpo/12500": samples})
