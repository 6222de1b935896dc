import json
import random

import pytest

from reward.labels.examples import as_labelled
from reward.labels.replay import Replay
from tests.reward.builders import flat, judged, scored_groups


def group(name, size=2):
    (made,) = scored_groups([judged(f"{name}", i, float(i)) for i in range(size)])
    return as_labelled(made)


def names(groups):
    return [group.labelled[0].sample.group_id for group in groups]


def filled(count=50, size=2, **options):
    replay = Replay(**({"capacity_groups": 100} | options))
    replay.add([group(f"old/{k}", size) for k in range(count)])
    replay.finish_stage()
    return replay


def test_a_tenth_of_the_examples_is_history_over_the_steps():
    replay = filled()
    added = [len(replay.mix([group(f"new/{step}/{k}") for k in range(4)], step)) - 4 for step in range(36)]
    assert sum(added[:9]) == 4 and sum(added) == 16, "36 fresh groups and 4 of the history are 10%"
    assert set(added) == {0, 1}


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_share_is_kept_with_groups_of_uneven_size_to_half_a_group(share):
    replay, rng = Replay(1000, share), random.Random(0)
    replay.add([group(f"old/{k}", rng.randint(1, 6)) for k in range(200)])
    replay.finish_stage()
    fresh = history = 0
    for step in range(300):
        new = [group(f"new/{step}/{k}", rng.randint(1, 6)) for k in range(rng.randint(0, 5))]
        mixed = replay.mix(new, step)
        assert names(mixed[: len(new)]) == names(new) and all(name.startswith("old/") for name in names(mixed[len(new) :]))
        assert len(set(names(mixed))) == len(mixed), "no group twice in one batch"
        fresh += len(flat(new))
        history += len(flat(mixed[len(new) :]))
        assert abs(history - share / (1 - share) * fresh) <= 3
    assert history / (fresh + history) == pytest.approx(share, abs=0.005)


def test_without_history_nothing_is_added_and_nothing_is_owed():
    replay = Replay(10, 0.5)
    assert names(replay.mix([group("a"), group("b")], 0)) == ["a", "b"]
    replay.add([group("old")])
    assert names(replay.mix([group("c")], 1)) == ["c"], "of the same stage still"
    replay.finish_stage()
    assert names(replay.mix([group("d")], 2)) == ["d", "old"]


def test_what_a_small_history_cannot_give_is_owed():
    replay = filled(count=1, share=0.5)
    assert len(replay.mix([group(f"new/{k}") for k in range(3)], 0)) == 3 + 1
    assert len(replay.mix([], 1)) == 1 and len(replay.mix([], 2)) == 1 and len(replay.mix([], 3)) == 0


def test_the_mix_follows_from_seed_step_and_state():
    def mixed(seed=0, step=0):
        return names(filled(seed=seed, share=0.5).mix([group(f"new/{k}") for k in range(5)], step))

    assert mixed() == mixed() and mixed() != mixed(seed=1) and mixed() != mixed(step=1)


def test_a_bounded_history_keeps_every_group_with_the_same_chance():
    kept = [0] * 12
    for seed in range(1500):
        replay = Replay(3, 0.9, seed)
        for start in (0, 4, 8):
            replay.add([group(f"{k}", 1) for k in range(start, start + 4)])
            replay.finish_stage()
        assert len(replay.groups) == 3
        for name in names(replay.mix([group("new", 1)] * 9, 0)[9:]):
            kept[int(name)] += 1
    assert sum(kept) == 4500
    assert all(abs(count - 375) < 4 * 17 for count in kept), "a quarter each, to four standard errors"


def test_state_survives_json_and_continues_alike():
    replay = filled(count=8, capacity_groups=5, share=0.3)
    replay.mix([group("new")], 0)
    replay.add([group("of this stage")])
    again = Replay(5, 0.3)
    again.restore(json.loads(json.dumps(replay.state())))
    assert again.state() == replay.state()
    for step in range(1, 6):
        fresh = [group(f"new/{step}")]
        assert again.mix(fresh, step) == replay.mix(fresh, step)
        again.add(fresh)
        replay.add(fresh)
        if step == 3:
            again.finish_stage()
            replay.finish_stage()
    assert again.state() == replay.state()


@pytest.mark.parametrize(("capacity", "share"), [(0, 0.1), (5, 1.0), (5, -0.1)])
def test_impossible_bounds_are_refused(capacity, share):
    with pytest.raises(ValueError, match="expected at least 1"):
        Replay(capacity, share)
