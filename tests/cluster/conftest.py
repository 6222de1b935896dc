import pytest

from reward.config import RewardConfig
from reward.judging.judges import gold_check
from rollout.data.datasets import load_data
from rollout.tasks.arithmetic import character_tokenizer
from tests.cluster.clusters import RECIPE, raylets
from tests.cluster.test_pipeline import configuration


@pytest.fixture(scope="session")
def tokenizer():
    return character_tokenizer()


@pytest.fixture(scope="module")
def data(tokenizer):
    """Of the runs with fakes at the seams."""
    return load_data(configuration("unused").data, tokenizer, 0, gold_check(RewardConfig()))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def head(here):
    with raylets(here) as cluster:
        yield cluster
