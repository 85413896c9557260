"""The commands `train` and `measure`, run in this process through an argument parser of their own."""

import argparse
import json

import pytest
from PIL import Image

from multilevel_diffusion.commands.in_order import register
from multilevel_diffusion.networks.by_name import open_ladder, open_source
from multilevel_diffusion.networks.store import load_ladder

LEVELS = ["--levels", "4:1:0", "6:1:0", "8:1:1"]


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    arguments = parser.parse_args(list(words))
    return arguments.run(arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert run("train", "--data", "digits", "--out", str(folder), "--steps", "12", "--batch", "4", *LEVELS) == 0
    return folder


def test_fewer_steps_than_a_row_of_the_loss_curve(tmp_path):
    assert run("train", "--data", "digits", "--out", str(tmp_path), "--steps", "5", "--batch", "4", *LEVELS) == 0
    assert [level["training"]["loss"] for level in load_ladder(tmp_path).record["levels"]] == [None] * 3
    assert "NaN" not in (tmp_path / "ladder.json").read_text()
    assert run("train", "--data", "digits", "--out", str(tmp_path), "--steps", "12", "--batch", "4", *LEVELS) == 0
    assert load_ladder(tmp_path).record["levels"][0]["training"]["loss"] > 0


def test_levels_are_counted_from_one(trained, capsys):
    assert run("train", "--data", "digits", "--out", str(trained), "--steps", "12", "--batch", "4", *LEVELS) == 0
    lines = capsys.readouterr().out.splitlines()
    levels = [line.split(":")[0] for line in lines if line.startswith(("network", "level"))]
    assert levels == ["network 1", "network 2", "network 3", "level 1", "level 2", "level 3"]


def test_train_writes_a_ladder(trained):
    ladder = load_ladder(trained)
    assert [network.config.base_dim for network in ladder.networks] == [4, 6, 8]
    assert ladder.networks[0].config.levels == 1  # 8x8 is halved to 4x4
    assert [level["training"]["settings"]["seed"] for level in ladder.record["levels"]] == [0, 1, 2]
    assert ladder.record["data"]["data"] == "digits"


def test_a_ladder_of_patches_learns_from_its_largest_network(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for grey in range(3):
        Image.new("RGB", (8, 8), (80 * grey,) * 3).save(photos / f"{grey}.png")
    words = ["train", "--data", f"folder:{photos}", "--vary", "--out", str(tmp_path / "ladder"), "--batch", "4"]
    words += ["--steps", "12", "--levels", "4:8:1:0", "2:8:1:1", "--teacher", "--velocity", "--bfloat16"]
    assert run(*words) == 0
    ladder = load_ladder(tmp_path / "ladder")
    assert [network.config.shape for network in ladder.networks] == ["4:8:1:0", "2:8:1:1"]
    assert ladder.record["data"]["vary"] is True
    training = [level["training"] for level in ladder.record["levels"]]
    assert [one.get("teacher") for one in training] == ["the next level", None]
    assert all(one["settings"]["velocity"] and one["settings"]["bfloat16"] for one in training)
    assert run(*words) == 0
    assert "network 1: 4:8:1:0, 12 steps of 4 images, trained already" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds another training run \(teacher .* against None"):
        run(*[word for word in words if word != "--teacher"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--levels", "4:8"], r'"--levels" has \'4:8\', expected DIM:BOTTOM:MID such as 32:3:2, or PATCH:WIDTH'),
        (["--levels", "3:8:1:0"], r'"image_size" is 8, expected a multiple of 3 for patches of 3'),
        (["--size", "16"], '"--size" is 16, but digits are 8x8; leave it out'),
        (["--vary"], r'"--vary" needs --data folder:PATH, got \'digits\'; leave it out'),
    ],
)
def test_what_train_refuses(tmp_path, words, told):
    with pytest.raises(ValueError, match=told):
        run("train", "--data", "digits", "--out", str(tmp_path), "--steps", "5", *words)


def test_measure_prints_and_writes(trained, tmp_path, capsys):
    words = ["--images", "20", "--draws", "1", "--batch", "2", "--out", str(tmp_path)]
    assert run("measure", "--ladder", str(trained), *words) == 0
    printed = capsys.readouterr().out
    assert "gamma, cost in FLOPs" in printed
    assert [line.split()[0] for line in printed.splitlines()[:4]] == ["level", "1", "2", "3"]
    scaling = json.loads((tmp_path / "scaling.json").read_text())
    assert len(scaling["errors"]["loss"]) == 3
    assert scaling["errors"]["images"] == 20
    assert (tmp_path / "scaling.png").exists()


def test_preset_is_found_by_the_shape_of_the_images(tmp_path, monkeypatch):
    asked = {}

    def record(configs, source, schedule, folder, settings, **options):
        asked.update(configs=configs, settings=settings)
        raise ValueError("stop here")

    monkeypatch.setattr("multilevel_diffusion.networks.training.train_ladder", record)
    monkeypatch.setattr(
        "multilevel_diffusion.networks.training_order.seconds_left", lambda configs, *a, **k: [0.0] * len(configs)
    )
    for data, size, base_dims, steps in [
        ("digits", "8", [4, 8, 16, 32, 64], [8000, 8000, 8000, 4500, 3500]),
        ("deadleaves", "32", [4, 8, 16, 32], [6000, 4000, 2500, 2500]),
    ]:
        with pytest.raises(ValueError, match="stop here"):
            run("train", "--data", data, "--size", size, "--out", str(tmp_path), "--seed", "5")
        assert [config.base_dim for config in asked["configs"]] == base_dims
        assert [setting.steps for setting in asked["settings"]] == steps
        assert [setting.seed for setting in asked["settings"]] == list(range(5, 5 + len(steps)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--data", "cats", "--out", "x"], "\"--data\" is 'cats'"),
        (["train", "--data", "folder", "--out", "x"], "expected folder:PATH"),
        (["train", "--data", "digits:here", "--out", "x"], "expected digits"),
        (
            ["train", "--data", "digits", "--preset", "paper", "--out", "x"],
            r'"--preset" paper is for images \(3, 64, 64\)',
        ),
        (
            ["train", "--data", "digits", "--classes", "subfolders", "--out", "x"],
            '"--classes" is subfolders, which needs',
        ),
        (["train", "--data", "digits", "--out", "x", "--steps", "1", "2"], '"--steps" has 2 numbers for 5'),
        (["train", "--data", "digits", "--out", "x", "--levels", "4:1"], "\"--levels\" has '4:1'"),
        (["train", "--data", "digits", "--out", "x", "--levels", "4:1:0"], '"--steps" is missing'),
        (["measure", "--ladder", "nowhere"], "\"--ladder\" is 'nowhere'"),
        (["measure", "--ladder", "digits", "--data", "deadleaves"], '"--data" gives images'),
    ],
)
def test_errors_are_one_sentence(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        run(*words)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_ladders_and_sources_by_name(trained):
    assert open_ladder("digits").image_shape == open_ladder(str(trained)).image_shape
    assert open_source("deadleaves", 12).image_shape == (3, 12, 12)
