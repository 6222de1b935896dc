"""Model directories shared by the learner's tests, and workers that leave their group when a test ends."""

import pytest

from tests.learner.builders import new_worker, write_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("untied"))


@pytest.fixture(scope="session")
def other_dir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def tied_dir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


@pytest.fixture
def start():
    """Start a worker in this process, after closing the previous one."""
    workers = []

    def make(directory, **config):
        while workers:
            workers.pop().close()
        workers.append(new_worker(directory, **config))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()
