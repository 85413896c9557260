"""Plan files: what a plan was made for is kept, guarded by the checksum, and empty in files of older versions."""

import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import multilevel_sde as mls
from multilevel_sde.files import checksum

PLAN = mls.Plan(torch.tensor([[True, True], [True, False]]), torch.tensor([[1.0, 0.5], [1.0, 0.0]]))
TIMES = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)


def test_what_a_plan_was_made_for_is_given_back(tmp_path):
    made_for = {"mode": "ddim", "steps": [1, 2], "ladder": None}
    PLAN.save(tmp_path / "plan", TIMES, made_for)
    assert mls.Plan.load_made_for(tmp_path / "plan") == made_for
    plan, times = mls.Plan.load_with_times(tmp_path / "plan")
    assert plan == PLAN
    assert torch.equal(times, TIMES)


def test_a_plan_that_does_not_say_is_made_for_nothing_in_particular(tmp_path):
    PLAN.save(tmp_path / "plan")
    assert mls.Plan.load_made_for(tmp_path / "plan") == {}


def test_files_of_version_2_are_read(tmp_path):
    tensors = {"hits": PLAN.hits, "weights": PLAN.weights}
    metadata = {"format": "multilevel_sde.plan", "version": "2", "truncated": "0"}
    metadata["sha256"] = checksum(["0"], tensors.values())
    save_file(tensors, tmp_path / "plan", metadata)
    assert mls.Plan.load(tmp_path / "plan") == PLAN
    assert mls.Plan.load_made_for(tmp_path / "plan") == {}


@pytest.mark.parametrize("changed", ['{"mode": "ddpm"}', "[]", "{", "{}"])
def test_changed_words_are_damage(tmp_path, changed):
    PLAN.save(tmp_path / "plan", TIMES, {"mode": "ddim"})
    with safe_open(tmp_path / "plan", "pt") as file:
        metadata = file.metadata() | {"made_for": changed}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "plan", metadata)
    with pytest.raises(ValueError, match="is damaged"):
        mls.Plan.load(tmp_path / "plan")


@pytest.mark.parametrize("made_for", [{"a": torch.ones(1)}, {1j: 2}, {"a": object}])
def test_what_json_cannot_hold_is_refused(tmp_path, made_for):
    with pytest.raises(ValueError, match='"made_for" must be a mapping that JSON can hold'):
        PLAN.save(tmp_path / "plan", made_for=made_for)
    assert not list(tmp_path.iterdir())


def test_numbers_come_back_as_they_were(tmp_path):
    PLAN.save(tmp_path / "plan", made_for={"tau": math.pi, "fine": 1000})
    assert mls.Plan.load_made_for(tmp_path / "plan") == {"tau": math.pi, "fine": 1000}
