"""The recipe for emoji, on a small package made here, and the folder of images that reads what it writes."""

import json
import tarfile

import pytest
import torch
from PIL import Image

from multilevel_diffusion.networks.emoji_images import _main, emoji_folder
from multilevel_diffusion.networks.image_folder import ImageFolder
from multilevel_diffusion.networks.variations import LARGEST_ANGLE, varied

TONES = ("1F3FB", "1F3FF")


def entry(code, category, subcategory, tones=(), has=True, name="A PICTURE"):
    def one(name):
        return {"image": f"{name.lower()}.png", "has_img_google": has}

    variants = {tone: one(f"{code}-{tone}") for tone in tones}
    return {**one(code), "name": name, "category": category, "subcategory": subcategory, "skin_variations": variants}


ENTRIES = [
    entry("1F600", "Smileys & Emotion", "face-smiling"),
    entry("2764-FE0F", "Smileys & Emotion", "heart"),
    entry("1F34E", "Food & Drink", "food-fruit"),
    entry("1F400", "Animals & Nature", "animal-mammal", name="RAT"),
    entry("1F42D", "Animals & Nature", "animal-mammal", name="MOUSE FACE"),
    entry("1F639", "Smileys & Emotion", "cat-face"),
    entry("1F9D4", "People & Body", "person", TONES),
    entry("1F401", "Animals & Nature", "animal-mammal", has=False),
    entry("1F468-200D-1F33E", "People & Body", "person-role", TONES),
    entry("1F469-200D-1F33E", "People & Body", "person-role", TONES),
    entry("1F44B", "People & Body", "hand-fingers-open", TONES),
]


@pytest.fixture
def package(tmp_path):
    """A folder like the one that the package unpacks to, whose pictures are half transparent black in one quarter."""
    root = tmp_path / "package"
    (root / "img" / "google" / "64").mkdir(parents=True)
    (root / "LICENSE").write_text("the package's licence")
    (root / "emoji_pretty.json").write_text(json.dumps(ENTRIES))
    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    picture.paste((0, 0, 0, 128), (0, 0, 32, 32))
    for one in ENTRIES:
        for image in (one, *one["skin_variations"].values()):
            if image["has_img_google"]:
                picture.save(root / "img" / "google" / "64" / image["image"])
    return root


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_pictures_become_classes_over_white_with_their_licences(package, tmp_path):
    assert emoji_folder(package, tmp_path / "out") == {"animal-faces": 1, "heads": 3, "smileys": 2}
    assert files(tmp_path / "out") == [
        "LICENSE.emoji-datasource.txt",
        "LICENSE.noto-emoji.txt",
        "animal-faces/1f42d.png",
        "heads/1f9d4+1f9d4-1f3fb.png",
        "heads/1f9d4+1f9d4-1f3ff.png",
        "heads/1f9d4.png",
        "smileys/1f600.png",
        "smileys/1f639.png",
    ]
    assert (tmp_path / "out" / "LICENSE.emoji-datasource.txt").read_text() == "the package's licence"
    assert "Apache License" in (tmp_path / "out" / "LICENSE.noto-emoji.txt").read_text()
    image = Image.open(tmp_path / "out" / "smileys" / "1f600.png")
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert image.getpixel((40, 40)) == (255, 255, 255)
    assert image.getpixel((8, 8)) == (127, 127, 127)


def test_the_packed_file_gives_what_its_folder_gives(package, tmp_path, capsys):
    with tarfile.open(tmp_path / "packed.tgz", "w:gz") as archive:
        archive.add(package, "package")
    assert _main([str(tmp_path / "packed.tgz"), "--out", str(tmp_path / "packed"), "--classes", "people", "food"]) == 0
    assert "1 food, 12 people written to" in capsys.readouterr().out
    emoji_folder(package, tmp_path / "folder", ["food", "people"])
    assert files(tmp_path / "packed") == files(tmp_path / "folder")


def test_variants_by_skin_tone_and_gender_are_one_group(package, tmp_path):
    emoji_folder(package, tmp_path / "out", ["people"])
    groups = [path.stem.partition("+")[0] for path in (tmp_path / "out" / "people").iterdir()]
    assert {group: groups.count(group) for group in groups} == {"1f9d1-1f33e": 6, "1f44b": 3, "1f9d4": 3}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "LICENSE").unlink(), "which has no LICENSE; give emoji-datasource-google@16.0.0"),
        (lambda root: (root / "img/google/64/1f42d.png").unlink(), "which has no img/google/64/1f42d.png"),
        (lambda root: root.rename(root.with_name("moved")), "expected the file that `npm pack emoji-"),
    ],
)
def test_what_is_not_the_package_is_refused(package, tmp_path, damage, words):
    damage(package)
    with pytest.raises(ValueError, match=words):
        emoji_folder(package, tmp_path / "out")


def test_a_group_is_held_out_as_a_whole_or_not_at_all(tmp_path):
    """Groups of three near copies, each group of one grey; every twentieth of 41 groups is held out."""
    for group in range(41):
        for copy in range(3):
            name = f"{group:02}" if copy == 0 else f"{group:02}+{copy}"
            Image.new("RGB", (4, 4), (6 * group,) * 3).save(tmp_path / f"{name}.png")
    source = ImageFolder(tmp_path, 4)
    held_out = set(source.held_out(99)[:, 0, 0, 0].tolist())
    seen = set(source.batch(3000, torch.Generator().manual_seed(0))[:, 0, 0, 0].tolist())
    assert (len(source.held_out(99)), len(held_out), len(seen)) == (9, 3, 38)
    assert not held_out & seen


def test_variations_move_by_a_pixel_and_keep_greys():
    """A grey image with one dark pixel: it is found at each of nine places; colours turn, their mean stays."""
    grey = torch.full((900, 3, 5, 5), 0.5)
    grey[:, :, 2, 2] = -0.5
    moved = varied(grey, torch.Generator().manual_seed(0))
    assert torch.allclose(moved, moved[:, :1].expand_as(moved), atol=1e-6)
    places = moved[:, 0].flatten(1).argmin(1)
    counts = torch.bincount(places, minlength=25).reshape(5, 5)
    assert counts.sum() == counts[1:4, 1:4].sum() == 900
    # 900 draws over nine places: chi-squared with 8 degrees of freedom, seed 0, level 1e-4.
    assert ((counts[1:4, 1:4] - 100.0) ** 2 / 100).sum() < 31.8
    colours = torch.tensor([0.6, 0.1, -0.4])[:, None, None].expand(500, 3, 4, 4)
    turned = varied(colours, torch.Generator().manual_seed(0))[:, :, 0, 0]
    assert torch.allclose(turned.mean(1), torch.full((500,), 0.1), atol=1e-6)
    assert torch.allclose(turned.norm(dim=1), colours[0, :, 0, 0].norm().expand(500), atol=1e-6)
    angles = torch.nn.functional.cosine_similarity(turned - 0.1, colours[:, :, 0, 0] - 0.1).clamp(-1, 1).acos()
    assert 0.9 * LARGEST_ANGLE < angles.max() < LARGEST_ANGLE + 1e-3


def test_varied_batches_depend_on_the_generator_alone(package, tmp_path):
    emoji_folder(package, tmp_path / "out", ["people"])
    plain, source = (ImageFolder(tmp_path / "out", 8, vary=vary) for vary in (False, True))
    first, again = (source.batch(8, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, plain.batch(8, torch.Generator().manual_seed(1)))
    assert source.describe() == {**plain.describe(), "vary": True}
