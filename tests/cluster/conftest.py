import pytest

from tests.cluster.clusters import RECIPE, raylets


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def head(here):
    with raylets(here) as cluster:
        yield cluster
