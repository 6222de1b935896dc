"""The planner's simulation against closed forms, and the lengths that it draws."""

import json
from dataclasses import replace

import pytest

from cluster.planning.cost import EngineCost
from cluster.planning.pipeline import Ahead, Engine, Timing, dealt, simulate
from cluster.planning.workload import Lengths, lengths_of_run

# One token a second for every request, whatever the batch: a wave takes as long as its longest output.
STEADY = EngineCost(weights=0.0, product=0.0, key=0.0, fixed=1.0, request=0.0)


def course(lengths, timing, *, requests=10**6, engines=1, waves=12, each=STEADY):
    run = [Engine(cost=each, requests=requests) for _ in range(engines)]
    return simulate(run, [dealt(lengths, 1, engines)] * waves, timing)


def test_without_staleness_a_step_is_the_sum_of_its_phases():
    found = course([[10, 4], [7]], Timing(train=5.0, sync=2.0, score=1.0))
    assert (found.step, found.generate, found.waiting) == pytest.approx((10 + 1 + 5 + 2, 10, 11))
    assert (found.rollout_busy, found.learner_busy) == pytest.approx((10 / 18, 5 / 18))


@pytest.mark.parametrize(("length", "train"), [(10, 10.0), (10, 100.0), (10, 1.0), (100, 99.0)])
def test_a_step_ahead_a_step_is_the_longer_of_sampling_and_training(length, train):
    found = course([[length]], Timing(train=train, sync=2.0, score=0.0, ahead=Ahead(1)))
    assert found.step == pytest.approx(max(length, train) + 2)
    assert found.learner_busy == pytest.approx(train / found.step)
    assert found.waiting == pytest.approx(0.0), "it waits to publish"


def test_scheduled_a_larger_bound_changes_nothing_where_waves_take_equally_long():
    timing = Timing(train=10.0, sync=1.0, score=0.0, ahead=Ahead(1))
    far = replace(timing, ahead=Ahead(3))
    assert course([[20]], far, waves=20).step == pytest.approx(course([[20]], timing, waves=20).step)


def test_in_flight_no_step_waits_for_a_longest_output_alone():
    lengths, timing = [[100, *[10] * 9]], Timing(train=1.0, sync=0.0, score=0.0, ahead=Ahead(9), keep_kv=True)
    assert course(lengths, timing, waves=60).step == pytest.approx(100, rel=0.02)
    flying = course(lengths, replace(timing, ahead=Ahead(9, in_flight=True)), waves=69)
    # Ten waves are under way at once, each 100 s long; the learner's second comes once in such a round.
    assert flying.step == pytest.approx(101 / 10)


def test_in_flight_an_update_interrupts_and_computes_the_cache_anew():
    each = replace(STEADY, product=0.01)
    timing = Timing(train=4.0, sync=3.0, score=0.0, ahead=Ahead(0, in_flight=True), keep_kv=True)
    kept = course([[10]], timing, each=each)
    assert kept.step == pytest.approx(0.01 + 10 * 1.01 + 4 + 3), "nothing is under way when it comes"
    over = replace(timing, ahead=Ahead(1, in_flight=True))
    assert course([[10]], over, each=each).step < course([[10]], replace(over, keep_kv=False), each=each).step


def test_an_engine_runs_no_more_at_once_than_it_may():
    assert course([[4, 4, 4, 4]], Timing(train=0.0, sync=0.0, score=0.0), requests=2).step == pytest.approx(8)
    assert course([[4, 4, 4, 4]], Timing(train=0.0, sync=0.0, score=0.0), requests=4).step == pytest.approx(4)
    uneven = course([[9, 1, 1, 1]], Timing(train=0.0, sync=0.0, score=0.0), requests=2)
    assert uneven.step == pytest.approx(9), "short ones take turns beside the long one"


def test_groups_are_dealt_to_engines_in_turn_and_the_last_engine_ends_the_wave():
    lengths = [[10], [2], [3], [2]]
    assert [[len(part) for _, part in wave] for wave in dealt(lengths, 1, 3)] == [[1, 1], [1], [1]]
    assert course(lengths, Timing(train=0.0, sync=0.0, score=0.0), engines=2).step == pytest.approx(10)
    assert course(lengths[:1], Timing(train=0.0, sync=0.0, score=0.0), engines=2).rollout_busy == pytest.approx(0.5)


def test_reading_prompts_and_caches_takes_its_time():
    each = EngineCost(weights=0.0, product=0.5, key=1.0, fixed=0.0, request=0.0)
    run = [Engine(cost=each, requests=9)]
    # A prompt of 5 is read once for its group of one, then ten tokens look at 5 to 15 keys.
    found = simulate(run, [[[(5, [10])]]], Timing(train=0.0, sync=0.0, score=0.0))
    assert found.generate == pytest.approx(5 * 0.5 + 10 * 0.5 + 10 * (5 + 10 / 2))


def test_lengths_have_the_asked_mean_and_limit():
    lengths = Lengths(prompt=10, output=300, limit=1000)
    drawn = lengths.draw(4000, 0)
    assert sum(drawn) / 4000 == pytest.approx(300, rel=0.03)
    assert max(drawn) == 1000 and sorted(drawn)[2000] < 290, "some are cut off, and half is below the mean"
    assert drawn == lengths.draw(4000, 0) != lengths.draw(4000, 1)
    assert set(Lengths(prompt=1, output=4, limit=9, seen=(3, 5)).draw(50, 0)) == {3, 5}


def test_lengths_of_a_run_are_those_of_its_newest_samples(tmp_path):
    (tmp_path / "samples").mkdir()
    for step, stage, length in ((9, "grpo", 3), (10, "grpo", 6), (11, "other", 8)):
        rows = [{"group": f"{stage}/0", "prompt_ids": [1] * 4, "output_ids": [1] * n} for n in (length, length + 2)]
        (tmp_path / f"samples/step_{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = lengths_of_run(tmp_path, "grpo", 7)
    assert (found.prompt, found.output, found.seen, found.source) == (4, 6.5, (6, 7), "2 outputs of step_10")
    with pytest.raises(ValueError, match="found no samples of stage ppo"):
        lengths_of_run(tmp_path, "ppo", 7)
