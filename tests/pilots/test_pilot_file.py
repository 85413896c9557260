"""Pilot files: what a pilot is of is kept, guarded by the checksum, and empty where it was not said."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import multilevel_sde as mls

LADDER = mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], costs=[1.0, 30.0])
MADE_FOR = {"mode": "ddim", "steps": [1, 2], "ladder": None}


@pytest.fixture(scope="module")
def measured():
    return mls.pilot(LADDER, torch.linspace(0.2, 2.0, 8)[:, None], torch.linspace(0.0, 1.0, 9))


def test_what_a_pilot_is_of_is_given_back(measured, tmp_path):
    measured.save(tmp_path / "pilot", MADE_FOR)
    assert mls.Pilot.load_made_for(tmp_path / "pilot") == MADE_FOR
    assert mls.Pilot.load(tmp_path / "pilot").calibration == measured.calibration


def test_a_pilot_that_does_not_say_is_read_as_ever(measured, tmp_path):
    measured.save(tmp_path / "pilot")
    assert mls.Pilot.load_made_for(tmp_path / "pilot") == {}
    assert mls.Pilot.load(tmp_path / "pilot").calibration == measured.calibration
    with safe_open(tmp_path / "pilot", "pt") as file:
        assert "made_for" not in file.metadata()


@pytest.mark.parametrize("changed", ['{"mode": "ddpm"}', "[]", "{", None])
def test_changed_words_are_damage(measured, tmp_path, changed):
    measured.save(tmp_path / "pilot", MADE_FOR)
    with safe_open(tmp_path / "pilot", "pt") as file:
        metadata = file.metadata() | {"made_for": changed}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "pilot", {name: text for name, text in metadata.items() if text is not None})
    for load in (mls.Pilot.load, mls.Pilot.load_made_for):
        with pytest.raises(ValueError, match="is damaged"):
            load(tmp_path / "pilot")


@pytest.mark.parametrize("made_for", [{"a": torch.ones(1)}, {1j: 2}])
def test_what_json_cannot_hold_is_refused(measured, tmp_path, made_for):
    with pytest.raises(ValueError, match='"made_for" must be a mapping that JSON can hold'):
        measured.save(tmp_path / "pilot", made_for)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "reader"), [("plan", mls.Plan), ("pilot", mls.Pilot)])
def test_a_file_or_folder_of_another_kind_is_named(measured, tmp_path, kind, reader):
    measured.save(tmp_path / "pilot")
    mls.em_plan(LADDER, measured.times).save(tmp_path / "plan")
    save_file({"weights": torch.ones(1)}, tmp_path / "neither")
    other = "pilot" if kind == "plan" else "plan"
    for load in (reader.load, reader.load_made_for):
        with pytest.raises(
            ValueError, match=rf"holds a {other}, not a {kind}; read it with .*\.{other.title()}\.load$"
        ):
            load(tmp_path / other)
        with pytest.raises(ValueError, match=f"neither.* is not a {kind} of multilevel_sde"):
            load(tmp_path / "neither")
        with pytest.raises(FileNotFoundError, match=f"no {kind} file at .*, which is a folder; give the file in it"):
            load(tmp_path)
        with pytest.raises(FileNotFoundError, match=f'no {kind} file at ".*nowhere"$'):
            load(tmp_path / "nowhere")
