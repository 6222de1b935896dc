"""What a reward function prints: kept, bounded, and never in its way."""

from reward.config import RewardConfig
from reward.judging.judges import function_of, function_pool
from tests.reward.builders import question

PRINTING = """
import os, sys
print("loaded")

def score(output):
    if output == "flood":
        for _ in range(3000):
            sys.stdout.write("y" * 9999 + "\\n")
    if output == "close":
        os.close(1), os.close(2)
        return 1.0
    print("half", end=" ")
    print(output, file=sys.stderr)
    if output == "die":
        os._exit(3)
    return 1.0
"""


def test_what_a_function_prints_is_kept_up_to_a_bound_and_never_in_its_way(tmp_path, monkeypatch):
    file, log = tmp_path / "printing.py", tmp_path / "logs" / "reward-0.log"
    file.write_text(PRINTING)
    monkeypatch.setattr("reward.judging.pool_process.LARGEST_LOG", 100_000)
    with function_pool(RewardConfig(function=f"{file}:score", judge_seconds=20), log) as pool:
        ask = function_of(pool)
        assert ask([(question(), "a")])[0].value == {"score": 1.0} and log.read_text() == "loaded\nhalf a\n"
        assert [o.status for o in ask([(question(), text) for text in ("die", "b", "close", "c")])][:3] == [
            "killed",
            "score",
            "score",
        ]
        assert log.read_text() == "loaded\nhalf a\nhalf die\nloaded\nhalf b\n"
    with function_pool(RewardConfig(function=f"{file}:score", judge_seconds=20), log) as pool:
        assert function_of(pool)([(question(), "flood"), (question(), "d")])[1].value == {"score": 1.0}
    text = log.read_text()
    assert len(text) < 101_000 and text.endswith("is not kept]\n") and text.count("is not kept") == 1
    log.unlink()
    log.mkdir()
    with function_pool(RewardConfig(function=f"{file}:score", judge_seconds=20), log) as pool:
        assert function_of(pool)([(question(), "e")])[0].value == {"score": 1.0}, "a log that cannot be written costs no score"
