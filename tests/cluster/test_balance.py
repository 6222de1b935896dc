"""What `cohort report` says of a ledger, and what it finds wrong in one."""

import io
import json
import random
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.records.balance import Balance, Ranges
from cluster.records.ledger import Ledger, history

PAIR = [0, 1]


def book(ledger, group, *events, attempt=0, **fields):
    for event in events:
        ledger.record(event, {group: PAIR}, attempt=attempt, **(fields if event in ("trained", "dropped") else {}))


@pytest.fixture
def ledger(tmp_path):
    """sft trained two ordinals. grpo/0 was leased three times; of grpo/1 one sample was trained, grpo/2 was refilled and not
    trained. The driver died in grpo/5, having trained grpo/3 after its checkpoint; that kept grpo/3, and not grpo/4."""
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path)
    for n in (0, 1):
        book(first, f"sft/{n}", "leased", "generated", "scored", "trained", step=n + 1)
    first.record("leased", {"grpo/0": PAIR, "grpo/1": PAIR})
    for attempt in (1, 2):
        first.record("leased", {"grpo/0": PAIR}, attempt=attempt)
    book(first, "grpo/0", "generated", "scored", "trained", attempt=2, step=3)
    book(first, "grpo/1", "generated")
    first.record("scored", {"grpo/1": [0]})
    first.record("trained", {"grpo/1": [0]}, step=3)
    first.record("dropped", {"grpo/1": [1]}, step=3, reason="the judge was\nkilled")
    book(first, "grpo/2", "leased", "generated", "scored", "dropped", reason="no spread in the group")
    book(first, "grpo/2.1", "leased", "generated", "scored", "dropped", reason="no credit", step=4)
    book(first, "grpo/3", "leased", "generated", "scored")
    book(first, "grpo/4", "leased")
    first.record("leased", {"grpo/4": PAIR}, attempt=1)
    offset = first.offset()
    book(first, "grpo/3", "trained", step=5)
    book(first, "grpo/5", "leased")
    first.close()
    second = Ledger(path, incarnation=1, offset=offset)
    second.take_up(SimpleNamespace(group_id="grpo/3", index=i) for i in PAIR)
    book(second, "grpo/3", "scored", "trained", step=5)
    book(second, "grpo/4", "leased", "generated")
    return second


SFT = {"leased": 4, "re-issued": 0, "generated": 4, "scored": 4, "trained": 4, "dropped": 0, "under way": 0, "abandoned": 0}
GRPO = {"leased": 12, "re-issued": 4, "generated": 12, "scored": 9, "trained": 5, "dropped": 5, "under way": 2, "abandoned": 4}


def test_every_sample_is_in_the_balance_once(ledger):
    balance = Balance(ledger.path, finished=False)
    facts = balance.facts()
    assert [facts["stages"][name]["samples"] for name in ("sft", "grpo")] == [SFT, GRPO]
    grpo = facts["stages"]["grpo"]
    assert (grpo["ordinals_asked"], grpo["ordinals_trained"]) == ([[0, 4]], [[0, 1], [3, 3]])
    reasons = {"no spread in the group": 2, "the judge was killed": 1, "no credit": 2}
    assert grpo["dropped_because"] == reasons and facts["holds"]
    assert str(balance) == "ledger: holds so far: nothing twice, nothing lost, 2 samples under way"
    for counts in (SFT, GRPO):
        assert counts["leased"] == counts["trained"] + counts["dropped"] + counts["under way"]


def test_changes_of_the_numbers_of_workers_are_told_and_count_no_samples(ledger):
    before = Balance(ledger.path, finished=False).facts()
    for step, role, old, new in ((1, "rollout", 1, 1), (2, "rollout", 1, 2), (3, "reward", 2, 1), (4, "rollout", 2, 1)):
        ledger.note("scaled", role=role, **{"from": old}, to=new, wanted=2, step=step)
    balance = Balance(ledger.path, finished=False)
    assert balance.workers() == ["rollout workers: 1, 2 after step 2, 1 after step 4", "reward workers: 2, 1 after step 3"]
    facts = balance.facts()
    assert facts.pop("scaled")[1] == {"role": "reward", "from": 2, "to": 1, "step": 3} and before.pop("scaled") == []
    assert facts == before
    assert len(list(history(ledger.path))) == len(list(history(ledger.path, ledger.path.read_bytes().index(b"scaled"))))


def test_when_nothing_is_under_way_it_passes_and_says_which_ordinals_were_trained(ledger):
    book(ledger, "grpo/4", "scored", "trained", step=6)
    balance = Balance(ledger.path, finished=True)
    assert str(balance) == "ledger: PASS: every ordinal asked for is trained or dropped, none twice"
    assert balance.lines()[1].startswith("ledger: grpo: ordinals asked 0-4, ordinals trained 0-1, 3-4, leased 12, re-issued 4,")
    out = io.StringIO()
    Console(width=120, file=out).print(balance.table())
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["ordinals", "trained", "0-1", "0-1,", "3-4"] in rows and ["abandoned", "0", "4"] in rows


def test_the_first_offenders_are_named(ledger):
    """As if every line about training had been written once more, that of the dead driver too."""
    lines = map(json.loads, ledger.path.read_text().splitlines())
    again = [json.dumps(line | {"incarnation": 1}) + "\n" for line in lines if line["event"] == "trained"]
    with ledger.path.open("a") as file:
        file.writelines(again)
    found = str(Balance(ledger.path, finished=False))
    assert found.startswith("ledger: FAIL, 6 times: sft/0[0]: trained (attempt 0) after the end; sft/1[0]: trained")
    assert "grpo/1[0]: trained" in found and found.endswith("; and 1 more")


def test_a_finished_run_has_lost_what_is_under_way(ledger):
    found = str(Balance(ledger.path, finished=True))
    assert found == "ledger: FAIL, 2 times: " + "; ".join(
        f"grpo/4[{i}]: generated, and neither trained nor dropped" for i in PAIR
    )


def test_an_ordinal_that_nobody_asked_for_is_one(ledger):
    book(ledger, "sft/4", "leased", "generated", "scored", "trained", step=6)
    found = str(Balance(ledger.path, finished=False))
    assert found == "ledger: FAIL, 1 times: sft/2-3: never asked for, and later ones were"


@pytest.mark.parametrize("seed", range(10))
def test_ranges_are_the_numbers_that_were_added(seed):
    rng, ranges = random.Random(seed), Ranges()
    numbers = [rng.randrange(30) for _ in range(rng.randint(0, 40))]
    for number in numbers:
        ranges.add(number)
    assert [n for a, b in ranges.bounds for n in range(a, b + 1)] == sorted(set(numbers))
    assert all(b + 1 < c for (_, b), (c, _) in zip(ranges.bounds, ranges.bounds[1:], strict=False)), "as few as can be"
    missing = sorted(set(range(max(numbers, default=-1))) - set(numbers))
    assert [n for a, b in ranges.gaps() for n in range(a, b + 1)] == missing


def test_the_report_shows_the_balance_and_fails_where_it_does_not_hold(ledger):
    run_dir = ledger.path.parent
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "stage": "sft", "reward": 0.5}\n')
    shown = CliRunner().invoke(app, ["report", str(run_dir)])
    assert shown.exit_code == 0
    *stages, verdict, page, picture = shown.stdout.splitlines()
    assert [line.split(":")[1] for line in stages] == [" sft", " grpo"]
    assert verdict.startswith("ledger: holds so far") and picture == str(run_dir / "run.png")
    assert page == str(run_dir / "run.html")
    (run_dir / "summary.json").write_text("{}")
    shown = CliRunner().invoke(app, ["report", str(run_dir), "--json"])
    assert shown.exit_code == 3 and json.loads(shown.stdout)["ledger"]["holds"] is False
