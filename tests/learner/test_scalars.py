"""Scalar models on packed rows."""

import pytest
import torch

from learner.models.scalars import check_scalar_packing
from reward.models.scalar_model import build
from tests.learner.builders import write_model


def made(directory, kind="process", members=2):
    return build(directory, kind, members=members, seed=1, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["outcome", "process"])
def test_packed_rows_have_the_scalars_of_each_output_alone(model_dir, kind):
    check_scalar_packing(made(model_dir, kind))


def test_a_model_that_sees_its_neighbours_in_the_row_is_refused(model_dir):
    model = made(model_dir, members=1)

    def see_everything(module, args, kwargs):
        return args, kwargs | {"attention_mask": torch.zeros_like(kwargs["attention_mask"], dtype=torch.float32)}

    model.members[0].base_model.register_forward_pre_hook(see_everything, with_kwargs=True)
    with pytest.raises(ValueError, match="share a row differ by"):
        check_scalar_packing(model)


def test_dropout_in_the_backbone_is_refused(tmp_path):
    model = made(write_model(tmp_path, attention_dropout=0.1))
    with pytest.raises(ValueError, match="attention_dropout is 0.1"):
        check_scalar_packing(model)
