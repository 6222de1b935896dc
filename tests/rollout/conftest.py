import pytest

from tests.rollout.engines import Updates, load


@pytest.fixture(scope="module")
def original(tiny_model_dir):
    return load(tiny_model_dir)


@pytest.fixture
def model(original):
    model, weights = original
    model.load_state_dict(weights)
    return model


@pytest.fixture
def updates(engine, engine_loop, original, weight_source):
    updates = Updates(engine, engine_loop, original[1], weight_source)
    yield updates
    updates.publish(original[1])
