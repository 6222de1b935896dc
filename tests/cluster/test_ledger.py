import json

import pytest

from cluster.records.ledger import Ledger, LedgerError, history, incarnations

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
    lines = history(path)
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
