"""The commands on a folder of real PNG files, as docs/training.md has them and as a newcomer may get them wrong."""

import json
import re
import shlex
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from places import DOCS

import multilevel_sde as mls
from multilevel_diffusion.networks.store import load_ladder
from multilevel_diffusion.sampling.shards import load_images
from multilevel_sde import cli

PAGE = (DOCS / "training.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^multilevel-sde (.*?)(?:\s+#.*)?$", PAGE, flags=re.MULTILINE)
SMALL = {
    "train": ["--levels", "4:1:0", "6:1:1", "--steps", "20", "--batch", "8", "--threads", "1"],
    "measure": ["--images", "6", "--draws", "1", "--threads", "1"],
    "pilot": ["--samples", "3", "--candidates", "12", "--threads", "1"],
    "plan": ["--threads", "1"],
    "sample": ["--threads", "1"],
    "quality": ["--threads", "1"],
}


def photos(folder, per_class=110, size=12):
    """Circles and squares of random colours as PNG files, in a folder for each."""
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            image = Image.new("RGB", (size, size + index % 3), tuple(draw.integers(0, 80, 3).tolist()))
            left, top = draw.integers(0, size // 2, 2).tolist()
            shape = getattr(ImageDraw.Draw(image), "ellipse" if name == "cat" else "rectangle")
            shape((left, top, left + size // 2, top + size // 2), fill=tuple(draw.integers(128, 256, 3).tolist()))
            image.save(folder / name / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos and a ladder trained on them with classes."""
    folder = tmp_path_factory.mktemp("place")
    photos(folder / "photos")
    words = ["train", "--data", f"folder:{folder / 'photos'}", "--classes", "subfolders", "--out", str(folder / "pets")]
    assert cli.main([*words, *SMALL["train"], "--steps", "150", "--learning-rate", "0.02"]) == 0
    return folder


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def small(words):
    """The words of a command of the page, with networks and runs for a test."""
    added = list(SMALL[words[0]])
    if "--levels" in words:  # the page gives small ones, for longer
        words = [*words[: words.index("--levels")], "--out", "mine"]
    for option in ("--count", "--threads"):
        if option in words and option in added:
            del added[added.index(option) : added.index(option) + 2]
    return [*words, *added]


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    """In order, each block in a folder of its own, with the module that the page shows."""
    assert len(COMMANDS) > 14
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    module = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "my_ladder" in code)
    for number, block in enumerate(blocks):
        folder = tmp_path / str(number)
        photos(folder / "photos")
        monkeypatch.chdir(folder)
        (folder / "mine.py").write_text(module)
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        for line in re.findall(r"^multilevel-sde (.*?)(?:\s+#.*)?$", block, flags=re.MULTILINE):
            assert cli.main(small(shlex.split(line))) == 0, line
        (folder / "mine.py").unlink()


def test_the_path_of_the_images_is_kept(place, tmp_path, capsys):
    assert json.loads((place / "pets" / "ladder.json").read_text())["data"]["path"] == str(place / "photos")
    words = ["measure", "--ladder", str(place / "pets"), *SMALL["measure"], "--out", str(tmp_path)]
    assert cli.main(words) == 0
    (place / "photos").rename(place / "elsewhere")
    try:
        assert cli.main(words) == 2
        assert f"the ladder's images were in {place / 'photos'}, which is not there" in capsys.readouterr().err
        assert cli.main([*words, "--data", f"folder:{place / 'elsewhere'}"]) == 0
    finally:
        (place / "elsewhere").rename(place / "photos")


def test_train_takes_the_size_of_the_images_and_says_what_it_will_do(tmp_path, capsys):
    photos(tmp_path / "photos", 5)
    words = ["train", "--data", f"folder:{tmp_path / 'photos'}", "--out", str(tmp_path / "mine"), *SMALL["train"]]
    assert cli.main(words) == 0
    assert load_ladder(tmp_path / "mine").image_shape == (3, 12, 12)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"10 images of 3x12x12 from folder:{tmp_path / 'photos'}"
    assert re.fullmatch(r"network 1: 4:1:0, 20 steps of 8 images, about .*second.*", lines[1])
    assert re.match(r"in all about .*second", lines[3])
    assert cli.main([*words, "--steps", "30"]) == 0
    entry = json.loads((tmp_path / "mine" / "ladder.json").read_text())["levels"][0]
    assert entry["training"]["settings"]["steps"] == 30
    assert entry["training"]["lengthened"] == [20]


def test_images_of_any_size_have_networks(tmp_path, monkeypatch, capsys):
    photos(tmp_path / "photos", 3, size=20)
    seen = []
    told = "multilevel_diffusion.networks.training_order.seconds_left"
    monkeypatch.setattr(told, lambda configs, *a, **k: seen.extend(configs) or 1 / 0)
    assert cli.main(["train", "--data", f"folder:{tmp_path / 'photos'}", "--out", str(tmp_path / "mine")]) == 2
    assert [(config.image_shape, config.levels) for config in seen] == [((3, 20, 20), 2)] * 4
    Image.new("RGB", (3000, 2000)).save(tmp_path / "large.png")
    for path in (tmp_path / "photos").rglob("*.png"):
        path.unlink()
    (tmp_path / "large.png").rename(tmp_path / "photos" / "large.png")
    assert cli.main(["train", "--data", f"folder:{tmp_path / 'photos'}", "--out", str(tmp_path / "mine")]) == 2
    assert "is 2000, more than 256; give one, such as 64" in capsys.readouterr().err


SAMPLE = ["sample", "--ladder", "pets", "--mode", "ddim", "--budget", "6", "--threads", "1", "--pages", "0"]


def sampling(count):
    return [*SAMPLE, "--count", str(count)]


def test_more_images_are_added_and_changed_arguments_are_named(there, tmp_path, capsys):
    out = ["--out", str(tmp_path), "--label", "cat", "dog"]
    assert cli.main([*sampling(5), *out, "--png"]) == 0
    before = load_images(tmp_path)
    assert cli.main([*sampling(9), *out, "--png"]) == 0
    assert torch.equal(load_images(tmp_path)[:5], before)
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == [f"{seed:06d}.png" for seed in range(9)]
    assert "5 of them were there" in capsys.readouterr().out
    for words, message in [
        (["--budget", "12"], "made with other arguments: --budget 6 against 12; give another folder"),
        (["--count", "4"], "made with other arguments: --count 9 against 4; give"),
        (["--label", "dog"], "made with other arguments: --label cat dog against dog; give"),
        (["--mode", "ddpm"], "made with other arguments: --mode ddim against ddpm; give"),
    ]:
        assert cli.main([*sampling(9), *out, *words]) == 2
        assert message in capsys.readouterr().err


def test_png_files_are_the_images(there, tmp_path):
    assert cli.main([*sampling(3), "--label", "1", "--seed", "4", "--png", "--out", str(tmp_path)]) == 0
    pixels = np.array(Image.open(tmp_path / "png" / "000006.png")).transpose(2, 0, 1)
    expected = ((load_images(tmp_path)[2].clamp(-1, 1) + 1) * 127.5).round().numpy()
    assert np.array_equal(pixels, expected)


def test_the_image_of_a_seed_and_label_does_not_depend_on_the_others(there, tmp_path):
    for guided in ([], ["--guidance", "2"]):
        folder = tmp_path / "".join(["all", *guided])
        assert cli.main([*sampling(4), "--label", "cat", "dog", "--out", str(folder), *guided]) == 0
        alone = [*sampling(1), "--label", "dog", "--seed", "3", "--batch", "1", "--out", str(folder / "one"), *guided]
        assert cli.main(alone) == 0
        torch.testing.assert_close(load_images(folder / "one")[0], load_images(folder)[3], rtol=1e-4, atol=1e-5)


def test_guidance_one_is_the_conditional_network_and_zero_the_unconditional(there, tmp_path):
    images = {}
    for name, words in {
        "label": ["--label", "cat"],
        "one": ["--label", "cat", "--guidance", "1"],
        "none": [],
        "zero": ["--label", "cat", "--guidance", "0"],
        "three": ["--label", "cat", "--guidance", "3"],
    }.items():
        assert cli.main([*sampling(2), "--out", str(tmp_path / name), *words]) == 0
        images[name] = load_images(tmp_path / name)
    torch.testing.assert_close(images["one"], images["label"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(images["zero"], images["none"], rtol=1e-4, atol=1e-5)
    assert (images["three"] - images["label"]).abs().max() > 1e-3


def test_without_a_pilot_it_is_said_which_command_makes_one(there, tmp_path, capsys):
    assert cli.main([*sampling(1), "--out", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert "make one with: multilevel-sde pilot --ladder pets --mode ddim --save" in error
    assert cli.main([*sampling(1), "--label", "0", "--guidance", "1.5", "--out", str(tmp_path / "guided")]) == 0
    assert "multilevel-sde pilot --ladder pets --mode ddim --guidance 1.5 --save" in capsys.readouterr().err


def test_a_plan_is_refused_for_another_ladder_mode_or_grid(there, tmp_path, capsys):
    pilot = ["pilot", "--ladder", "pets", "--mode", "ddim", *SMALL["pilot"], "--out", str(tmp_path / "pilot")]
    assert cli.main(pilot) == 0
    saved, plan = str(tmp_path / "pilot" / "pilot.safetensors"), str(tmp_path / "plan.safetensors")
    assert (
        cli.main(["plan", "--ladder", "pets", "--mode", "ddim", "--budget", "5", "--pilot", saved, "--out", plan]) == 0
    )
    told = mls.Plan.load_made_for(plan)
    assert (told["mode"], told["fine"], told["ladder"]) == ("ddim", 1000, load_ladder(there / "pets").digest)
    out = ["--count", "1", "--threads", "1", "--out", str(tmp_path / "out")]
    train = ["train", "--data", "folder:photos", "--out", str(tmp_path / "other"), *SMALL["train"], "--seed", "5"]
    assert cli.main([*train, "--classes", "subfolders"]) == 0
    for words, message in [
        (["--ladder", "pets"], "holds a plan for mode ddim, this run has mode ddpm; give --mode ddim"),
        (["--ladder", str(tmp_path / "other"), "--mode", "ddim"], "holds a plan for another ladder"),
        (["--ladder", "pets", "--mode", "ddim", "--fine", "500"], "give --fine 1000 or another plan"),
        (["--ladder", "pets", "--mode", "ddim", "--label", "0", "--guidance", "2"], "this run has guidance 2.0; leave"),
        (["--ladder", "pets", "--mode", "ddim", "--steps", "3"], '"--steps" is 3, but the plan has'),
    ]:
        assert cli.main(["sample", *words, "--plan", plan, *out]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["sample", "--ladder", "pets", "--mode", "ddim", "--plan", plan, *out]) == 0
    assert mls.Plan.load_made_for(tmp_path / "out" / "plan.safetensors") == told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "bird"], "\"--label\" is 'bird', expected a class (cat, dog) or its number 0 to 1"),
        (["--label", "2"], "\"--label\" is '2', expected a class"),
        (["--guidance", "2"], '"--guidance" needs the class to follow; give --label'),
        (["--ladder", "digits", "--label", "1"], '"--label" needs a ladder that knows classes'),
        (["--ladder", "digits", "--label", "1", "--guidance", "2"], '"--guidance" needs a ladder that knows classes'),
        (["--ladder", "nowhere:ladder"], "no module 'nowhere' is found"),
        (["--ladder", "json:nothing"], "module 'json' has no function 'nothing'"),
        (["--ladder", "json:__name__"], "\"--ladder\" is 'json:__name__', which is not callable but of type str; name"),
        (["--ladder", "json:dumps"], ""),
        (["--ladder", ":"], ""),
    ],
)
def test_wrong_words_are_one_sentence(words, message, there, tmp_path, capsys):
    assert cli.main([*sampling(1), "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("multilevel-sde sample: ")
    assert message in error[-1]
    assert not (tmp_path / "out").exists()


# -- quality -----------------------------------------------------------------------------------------------------------


def test_quality_refuses_too_few_and_compares_pairs(there, tmp_path, capsys):
    assert cli.main([*sampling(4), "--png", "--out", str(tmp_path / "a")]) == 0
    words = ["--samples", str(tmp_path / "a"), "--out", str(tmp_path / "q")]
    assert cli.main(["quality", *words, "--reference", "photos"]) == 2
    assert '"--samples" holds 4 images, expected at least 192 of this shape' in capsys.readouterr().err
    assert cli.main(["quality", *words, "--reference", "photos", "--psnr"]) == 2
    assert "there is none in both folders" in capsys.readouterr().err
    assert cli.main(["quality", *words, "--reference", str(tmp_path / "a" / "png"), "--psnr"]) == 0
    found = json.loads((tmp_path / "q" / "quality.json").read_text())["psnr"]
    assert found["pairs"] == 4
    assert 50 < found["lowest"] <= found["mean"] < 70  # rounding to bytes
    assert cli.main(["quality", *words, "--reference", str(tmp_path / "a"), "--psnr"]) == 0
    assert json.loads((tmp_path / "q" / "quality.json").read_text())["psnr"]["mean"] == "inf"


@pytest.mark.parametrize(
    ("samples", "reference", "says"),
    [
        ((12, 12), (8, 8), "12x12 in --samples and 8x8 in --reference"),
        ((8, 8), (12, 12), "8x8 in --samples and 12x12 in --reference"),
        ((12, 12), (12, 14), "12x12 in --samples and 12x14 in --reference"),
        ((20, 20), (20, 20), "20x20 in --samples and 20x20 in --reference"),  # scaled for the other image of 16 pixels
        ((16, 16), (16, 16), None),
        ((16, 18), (16, 18), None),
    ],
)
def test_quality_compares_no_scaled_images_one_by_one(samples, reference, says, tmp_path, capsys):
    for folder, size in (("a", samples), ("b", reference)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", size).save(tmp_path / folder / "pair.png")
        Image.new("RGB", (16, 30)).save(tmp_path / folder / f"only_{folder}.png")
    words = ["--samples", str(tmp_path / "a"), "--reference", str(tmp_path / "b"), "--out", str(tmp_path / "q")]
    assert cli.main(["quality", "--psnr", *words]) == (2 if says else 0)
    error = (
        f'multilevel-sde quality: "--psnr" compares pixel by pixel, but image pair is {says}; bring all images of both'
    )
    assert capsys.readouterr().err.startswith(error if says else "")
    assert (tmp_path / "q").exists() == (says is None)


def test_quality_compares_no_job_with_files_of_another_size(there, tmp_path, capsys):
    assert cli.main([*sampling(1), "--out", str(tmp_path / "made")]) == 0
    (tmp_path / "files").mkdir()
    Image.new("RGB", (24, 24)).save(tmp_path / "files" / "000000.png")
    words = ["--samples", str(tmp_path / "made"), "--reference", str(tmp_path / "files"), "--out", str(tmp_path / "q")]
    assert cli.main(["quality", "--psnr", *words]) == 2
    assert "image 000000 is 12x12 in --samples and 24x24 in --reference" in capsys.readouterr().err


def test_quality_of_two_jobs_shows_their_pairs(there, tmp_path, capsys):
    for steps in ("3", "4"):
        words = ["--count", "256", "--steps", steps, "--threads", "1", "--pages", "0", "--out", str(tmp_path / steps)]
        assert cli.main(["sample", "--ladder", "digits", "--method", "em", *words]) == 0
    words = ["--samples", str(tmp_path / "3"), "--reference", str(tmp_path / "4"), "--out", str(tmp_path / "q")]
    assert cli.main(["quality", *words, "--threads", "1"]) == 0
    told = capsys.readouterr().out
    assert "note: images of one seed are not independent" in told
    assert "PSNR of 256 pairs of images" in told


def test_quality_of_real_images_is_their_floor(there, tmp_path, capsys):
    for half in ("first", "second"):
        photos(tmp_path / half, 100)
    words = ["quality", "--samples", str(tmp_path / "first"), "--reference", str(tmp_path / "second"), "--threads", "1"]
    assert cli.main([*words, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "quality.json").read_text())
    assert found["frechet"] < found["frechet_floor"]["estimate"]
    assert (found["samples"], found["reference"]) == (200, 200)
    told = capsys.readouterr().out
    assert "48 averages of pixels" in told
    assert "PSNR" not in told  # photos of one name are no pairs
    assert "psnr" not in found
    assert cli.main(["quality", "--samples", "nowhere", "--reference", "photos"]) == 2
    assert "\"--samples\" is 'nowhere', which is no folder" in capsys.readouterr().err
