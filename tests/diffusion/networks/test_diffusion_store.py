"""Ladders on disk: what is written comes back, and what does not fit together is refused in one sentence."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from multilevel_diffusion.networks.data import DeadLeaves, Digits
from multilevel_diffusion.networks.denoisers import EpsilonDenoiser
from multilevel_diffusion.networks.scaling import measure_errors
from multilevel_diffusion.networks.store import load_ladder, save_ladder, shipped_ladder, shipped_ladders
from multilevel_diffusion.networks.unet import UNet, UNetConfig
from multilevel_diffusion.process.schedules import CosineSchedule
from multilevel_diffusion.process.tables import LinearSchedule
from multilevel_sde.files import seal

TINY = UNetConfig(base_dim=4, bottom_depth=1, mid_depth=0, levels=1, image_size=8, channels=1, time_dim=8)
TWO = [TINY, replace(TINY, base_dim=8)]


def networks(configs=TWO):
    generator = torch.Generator().manual_seed(0)
    made = [UNet(config) for config in configs]
    for network in made:
        for parameter in network.parameters():
            parameter.detach().copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    save_ladder(folder, networks(), CosineSchedule(), clip=(-1, 1), data={"data": "none"}, batch=2)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(written, tmp_path / "ladder")


def edit(path, **changes):
    """Change entries of a file of a ladder, checksums included, as somebody who writes ladders by hand would."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    folder = path.parent if path.name == "ladder.json" else path.parents[1]
    record = json.loads((folder / "ladder.json").read_text())
    for entry in record["levels"]:
        entry["config_sha256"] = hashlib.sha256((folder / entry["folder"] / "config.json").read_bytes()).hexdigest()
    (folder / "ladder.json").write_text(json.dumps(seal({key: record[key] for key in record if key != "sha256"})))


def replace_weights(folder, level, change):
    """Change the weights of a level in the same way."""
    weights = folder / f"level_{level + 1}" / "model.safetensors"
    record = json.loads((folder / "ladder.json").read_text())
    content = to_safetensors(change(from_safetensors(weights.read_bytes())))
    weights.write_bytes(content)
    record["levels"][level]["sha256"] = hashlib.sha256(content).hexdigest()
    edit(folder / "ladder.json", levels=record["levels"])


def test_round_trip(written):
    ladder = load_ladder(written)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.6, dtype=torch.float64)
    for made, read, drift in zip(networks(), ladder.networks, ladder.ladder.drifts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), read.parameters(), strict=True))
        assert torch.equal(drift(x, t), EpsilonDenoiser(made, CosineSchedule(), clip=(-1, 1))(x, t))
    assert ladder.schedule == CosineSchedule()
    assert ladder.clip == (-1.0, 1.0)
    assert ladder.image_shape == (1, 8, 8)
    assert ladder.record["data"] == {"data": "none"}
    assert not list(written.rglob(".*"))


def test_costs_are_counted_and_measured(written):
    ladder = load_ladder(written)
    # Convolutions at both ends, to and from the bottom, one residual layer there, time embedding and modulations.
    first = 2 * 9 * 4 * 64 + 2 * 2 * 16 * 64 + (9 * 8 + 4 * 64) * 16 + 14 * 8 + 8 * 2 * 12
    assert ladder.ladder.costs[0] == 2 * first
    assert ladder.ladder.costs[0] < ladder.ladder.costs[1]
    seconds = [level["seconds"] for level in ladder.record["levels"]]
    assert all(0 < value < 1 for value in seconds)
    if seconds[0] < seconds[1]:
        assert list(ladder.seconds_ladder.costs) == seconds


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(written, dtype):
    ladder = load_ladder(written, dtype=dtype)
    out = ladder.denoisers[1](torch.zeros(2, 1, 8, 8, dtype=dtype), torch.tensor(0.5, dtype=torch.float64))
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


def test_ladders_of_format_1_are_still_read(folder):
    """As the first preview wrote them: checksums of the weights only."""
    record = json.loads((folder / "ladder.json").read_text())
    del record["sha256"]
    (folder / "ladder.json").write_text(json.dumps({**record, "format": 1}))
    with pytest.raises(ValueError, match="its checksum does not fit"):  # of format 2, and damaged twice
        load_ladder(folder)
    for entry in record["levels"]:
        del entry["config_sha256"]
    (folder / "ladder.json").write_text(json.dumps({**record, "format": 1}))
    assert load_ladder(folder).ladder.costs == tuple(entry["flops"] for entry in record["levels"])
    assert len(load_ladder(folder).networks) == 2


def test_no_clip_is_kept(tmp_path):
    save_ladder(tmp_path, networks()[:1], CosineSchedule(), clip=None, batch=1)
    assert load_ladder(tmp_path).clip is None


def test_global_random_state_is_left_alone(written):
    state = torch.get_rng_state()
    load_ladder(written)
    assert torch.equal(state, torch.get_rng_state())


DAMAGES = {
    "no ladder.json": (lambda f: (f / "ladder.json").unlink(), "has no file"),
    "half a ladder.json": (lambda f: (f / "ladder.json").write_text('{"format": 1,'), "not readable as JSON"),
    "newer": (lambda f: edit(f / "ladder.json", format=3), "format 3, newer than 2; update"),
    "no number": (lambda f: (f / "ladder.json").write_text('{"format": "1"}'), "has the format '1', expected a number"),
    "deep": (lambda f: (f / "ladder.json").write_text("[" * 100_000), "not readable as JSON"),
    "another encoding": (
        lambda f: (f / "ladder.json").write_bytes((f / "ladder.json").read_text().encode("utf-16")),
        "not readable as JSON",
    ),
    "no clip": (lambda f: edit(f / "ladder.json", clip=5), "holds what is no ladder .*; write it with save_ladder"),
    "no list": (lambda f: edit(f / "ladder.json", schedule=[1]), "holds what is no ladder"),
    "changed cost": (
        lambda f: (f / "ladder.json").write_text((f / "ladder.json").read_text().replace('"flops": ', '"flops": 1')),
        "ladder.json is damaged or was changed by hand, its checksum does not fit",
    ),
    "no checksum": (
        lambda f: (f / "ladder.json").write_text((f / "ladder.json").read_text().replace('"sha256": ', '"sha255": ')),
        "its checksum does not fit",
    ),
    "changed network": (
        lambda f: (f / "level_2/config.json").write_text((f / "level_2/config.json").read_text() + " "),
        "config.json is not the file that ladder.json describes",
    ),
    "no levels": (lambda f: edit(f / "ladder.json", levels=[]), "without levels"),
    "missing entry": (lambda f: (f / "ladder.json").write_text('{"format": 1}'), 'no entry "schedule"'),
    "bare level": (lambda f: edit(f / "ladder.json", levels=[{"folder": "level_1"}]), 'no entry "flops"'),
    "schedules": (
        lambda f: edit(f / "level_2/config.json", schedule=LinearSchedule().to_dict()),
        "level 2 of .* has schedule",
    ),
    "parameterisations": (
        lambda f: edit(f / "level_1/config.json", parameterisation="v"),
        "level 1 of .* has parameterisation v",
    ),
    "shapes": (lambda f: edit(f / "level_2/config.json", image_shape=[1, 16, 16]), "level 2 of .* has image_shape"),
    "another network": (
        lambda f: edit(f / "level_1/config.json", network=replace(TINY, base_dim=6).to_dict()),
        "does not fit the network",
    ),
    "shape of the network": (
        lambda f: edit(f / "level_1/config.json", network=replace(TINY, image_size=16).to_dict()),
        "describes a network for",
    ),
    "no weights": (lambda f: (f / "level_2/model.safetensors").unlink(), "has no file .*copy the whole"),
    "truncated weights": (
        lambda f: (f / "level_2/model.safetensors").write_bytes((f / "level_2/model.safetensors").read_bytes()[:-100]),
        "truncated",
    ),
    "swapped weights": (
        lambda f: shutil.copy(f / "level_1/model.safetensors", f / "level_2/model.safetensors"),
        "not the file that ladder.json describes",
    ),
    "nan": (
        lambda f: replace_weights(f, 0, lambda state: {**state, "head.bias": state["head.bias"] * float("nan")}),
        r"not finite \(head.bias\)",
    ),
    "a weight less": (
        lambda f: replace_weights(f, 0, lambda state: {key: state[key] for key in state if key != "head.bias"}),
        "does not fit the network",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_refused(folder, damage):
    change, words = DAMAGES[damage]
    change(folder)
    with pytest.raises(ValueError, match=words) as caught:
        load_ladder(folder)
    assert "\n" not in str(caught.value)


def test_folders_are_numbered_from_one(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["ladder.json", "level_1", "level_2"]


@pytest.mark.parametrize("form", [1, 2])
def test_ladders_that_number_their_folders_from_zero_are_read(folder, form):
    """What `save_ladder` wrote before it counted from one, in both formats."""
    expected = load_ladder(folder)
    record = json.loads((folder / "ladder.json").read_text())
    for level, entry in enumerate(record["levels"]):
        (folder / entry["folder"]).rename(folder / f"level_{level}")
        entry["folder"] = f"level_{level}"
        if form == 1:
            del entry["config_sha256"]
    del record["sha256"]
    sealed = seal({**record, "format": form})
    (folder / "ladder.json").write_text(json.dumps(sealed if form == 2 else {**record, "format": form}))
    read = load_ladder(folder)
    for one, other in zip(read.networks, expected.networks, strict=True):
        assert one.config == other.config
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_foreign_parameterisation_is_refused(folder):
    for path in (folder / "ladder.json", folder / "level_1/config.json", folder / "level_2/config.json"):
        edit(path, parameterisation="velocity")
    with pytest.raises(ValueError, match="parameterisation 'velocity', expected 'epsilon'"):
        load_ladder(folder)


def test_saving_refuses(tmp_path):
    good = networks()
    broken = networks()
    broken[1].head.bias.detach().fill_(torch.inf)
    for arguments, words in [
        (([],), '"networks" is empty'),
        ((good[::-1],), "expected increasing costs"),
        ((broken,), r"networks\[1\] has weights that are not finite"),
        (([good[0], UNet(replace(TINY, image_size=16))],), r'"networks\[1\]" has image shape'),
    ]:
        with pytest.raises(ValueError, match=words):
            save_ladder(tmp_path, *arguments, CosineSchedule())
    with pytest.raises(ValueError, match='"training" has 1 entries for 2 networks'):
        save_ladder(tmp_path, good, CosineSchedule(), training=[{}])
    assert not (tmp_path / "ladder.json").exists()


def test_shipped_digits_get_better_with_cost():
    """Held-out images and noise of other seeds than in the record; each level must beat the one below it."""
    ladder = load_ladder(shipped_ladder("digits"))
    assert len(ladder.ladder) >= 4
    assert ladder.ladder.costs[-1] > 200 * ladder.ladder.costs[0]
    errors = measure_errors(ladder.networks, ladder.schedule, Digits().held_out(300), draws=2, seed=7)
    assert errors.loss == sorted(errors.loss, reverse=True)
    assert errors.to_top == sorted(errors.to_top, reverse=True)
    # Four standard errors of the mean over the images; the noise differs, the images do not.
    for level, loss in zip(ladder.record["levels"], errors.loss, strict=True):
        assert abs(level["error"]["loss"] - loss) < 4 * level["error"]["loss_error"]


def test_shipped_dead_leaves_get_better_with_cost():
    ladder = load_ladder(shipped_ladder("deadleaves32"))
    errors = measure_errors(ladder.networks, ladder.schedule, DeadLeaves(32).held_out(48), draws=1, seed=7)
    assert errors.loss == sorted(errors.loss, reverse=True)
    assert errors.to_next == sorted(errors.to_next, reverse=True)


def test_shipped_ladders_are_small_and_load():
    for name in shipped_ladders():
        assert sum(file.stat().st_size for file in shipped_ladder(name).rglob("*")) < 12e6
        assert load_ladder(shipped_ladder(name)).ladder.unit == "FLOPs"
    with pytest.raises(ValueError, match="\"name\" is 'nothing', expected one of"):
        shipped_ladder("nothing")
