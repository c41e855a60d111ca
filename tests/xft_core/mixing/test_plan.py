"""A plan from names and shapes alone agrees with the family table for our own checkpoints."""

from pathlib import Path

import pytest
import torch

from tests.factories import each_family
from tests.xft_core.stages.test_mix import grown_apart
from xft_core.errors import CheckpointError
from xft_core.mixing.mixture import MixtureReader
from xft_core.mixing.plan import MixturePlan, expand, of_expert
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.stages.merge_mixture import chosen_plan


@pytest.mark.parametrize("family", each_family())
@pytest.mark.parametrize("shared_expert", [True, False])
def test_the_plan_is_the_family_table(family: str, shared_expert: bool, tmp_path: Path) -> None:
    directory = grown_apart(tmp_path, family, shared_expert=shared_expert)
    with CheckpointReader(directory) as reader, MixtureReader(directory) as mixture:
        plan = chosen_plan(reader, None)
        found = {group.target: group for group in expand(plan, plan.groups)}
        tensors = [tensor for layer in range(2) for tensor in mixture.expert_tensors(layer)]
        assert sorted(found) == sorted(tensor.name for tensor in tensors)
        for tensor in tensors:
            experts = list(of_expert(plan, found[tensor.name], reader))
            assert len(experts) == 4
            assert all(torch.equal(expert, tensor.of_expert(number)) for number, expert in enumerate(experts)), tensor.name
        assert all(".router." in name for name in plan.left_out)
        assert not plan.warnings and {group.scale for group in plan.groups} == {1.0}
        assert MixturePlan.parse(plan.model_dump_json().encode()) == plan


def test_experts_stored_once_are_none_to_merge(tmp_path: Path) -> None:
    grown_apart(tmp_path)
    from xft_core.recipe.sections import UpcycleConfig
    from xft_core.stages.upcycle import upcycle

    (tmp_path / "once").mkdir()
    upcycle(tmp_path / "dense", tmp_path / "once", UpcycleConfig(num_experts=4, num_experts_per_tok=3), seed=0)
    with CheckpointReader(tmp_path / "once") as reader, pytest.raises(CheckpointError, match="no tensors of 3 experts"):
        chosen_plan(reader, None)
