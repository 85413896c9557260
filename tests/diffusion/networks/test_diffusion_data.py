"""Sources of images: range, determinism, what is held out, and how files are prepared."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from multilevel_diffusion.networks.data import DeadLeaves, Digits
from multilevel_diffusion.networks.dead_leaves_images import dead_leaves
from multilevel_diffusion.networks.image_folder import CelebA, ImageFolder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def folder(tmp_path):
    """A folder tree of 45 images, each of one grey value that tells it from the others, left half darker by 1."""
    for i in range(45):
        pixels = np.full((12, 10, 3), 5 * i + 1, dtype=np.uint8)
        pixels[:, :5] -= 1
        (tmp_path / f"part{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"part{i % 2}" / f"{i:02}.png")
    return tmp_path


def sources(folder):
    return [Digits(), Digits(shift=False), DeadLeaves(12, pool=40), DeadLeaves(8, 1, pool=3), ImageFolder(folder, 8)]


def test_batches_keep_the_contract(folder):
    for source in sources(folder):
        images = source.batch(50, generator(3))
        assert images.shape == (50, *source.image_shape)
        assert images.dtype == torch.float32
        assert -1 <= images.min() < images.max() <= 1
        assert torch.equal(images, source.batch(50, generator(3)))
        assert not torch.equal(images, source.batch(50, generator(4)))
        assert torch.equal(source.held_out(3), source.held_out(3))
        assert torch.equal(source.held_out(3)[:2], source.held_out(2))


def test_held_out_images_are_never_trained_on(folder):
    for source in (Digits(shift=False), ImageFolder(folder, 8, mirror=False), DeadLeaves(8, pool=60)):
        seen = {tuple(image.flatten().tolist()) for image in source.batch(4000, generator())}
        assert not any(tuple(image.flatten().tolist()) in seen for image in source.held_out(60))


def test_digits_are_moved_sideways_half_of_the_time():
    plain, moved = Digits(shift=False), Digits()
    originals = plain.batch(4000, generator())
    images = moved.batch(4000, generator())  # the same images: the choice of images is drawn first
    left, right = torch.roll(originals, -1, 3), torch.roll(originals, 1, 3)
    left[..., -1] = right[..., 0] = -1
    same = [(images == other).flatten(1).all(dim=1) for other in (originals, left, right)]
    assert torch.stack(same).any(dim=0).all()
    # Four standard deviations of a proportion of 1/4 among 4000.
    assert abs(same[1].double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert abs(same[2].double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)


def test_dead_leaves_depend_on_their_seed_only():
    assert torch.equal(dead_leaves(range(260), 8)[255:], dead_leaves(range(255, 260), 8))
    assert not torch.equal(dead_leaves([0], 8), dead_leaves([1], 8))


def test_dead_leaves_look_like_images():
    """Neighbours are alike, edges are rare but large, and the spectrum falls like that of photographs, near 1/f^2."""
    images = dead_leaves(range(64), 48, 1)[:, 0]
    steps = (images[:, 1:] - images[:, :-1]).abs()
    assert steps.median() < 0.03
    assert steps.mean() > 2 * steps.median()
    power = torch.fft.rfft2(images).abs().square().mean(dim=0)
    vertical, horizontal = power[2:17, 0], power[0, 2:17]
    slope = np.polyfit(np.log(np.arange(2, 17)), np.log(((vertical + horizontal) / 2).numpy()), 1)[0]
    assert -2.6 < slope < -1.4
    # No direction is preferred.
    assert 0.8 < float(vertical.sum() / horizontal.sum()) < 1.25


def test_dead_leaves_are_antialiased():
    """Averaging a finer rendering gives nearly the coarse one."""
    fine = dead_leaves(range(12), 96)
    averaged = torch.nn.functional.avg_pool2d(fine, 3)
    assert (averaged - dead_leaves(range(12), 32)).abs().mean() < 0.05


def test_pool_images_are_turned_and_mirrored_in_all_eight_ways():
    source = DeadLeaves(8, pool=1)
    distinct = {tuple(image.flatten().tolist()) for image in source.batch(400, generator())}
    assert len(distinct) == 8


def test_folder_prepares_the_central_square(folder):
    source = ImageFolder(folder, 2, mirror=False)
    everything = {round((value + 1) * 127.5) for value in source.batch(4000, generator())[:, 0, 0, 1].tolist()}
    held_out = {round((value + 1) * 127.5) for value in source.held_out(100)[:, 0, 0, 1].tolist()}
    order = sorted(range(45), key=lambda i: (i % 2, i))  # by path
    assert held_out == {5 * i + 1 for i in order[::20]}
    assert everything | held_out == {5 * i + 1 for i in range(45)}
    assert (source.batch(100, generator())[..., 0] < source.batch(100, generator())[..., 1]).all()


def test_folder_mirrors_half_of_the_images(folder):
    images = ImageFolder(folder, 2).batch(4000, generator())
    mirrored = (images[:, 0, 0, 0] > images[:, 0, 0, 1]).double().mean()
    assert abs(mirrored - 0.5) < 4 * math.sqrt(0.25 / 4000)


def test_folder_skips_and_counts_what_it_cannot_read(folder, capsys):
    (folder / "broken.png").write_bytes(b"not an image")
    whole = (folder / "part0" / "00.png").read_bytes()
    (folder / "part0" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("not an image, and not called one")
    source = ImageFolder(folder, 8)
    assert source.skipped == 2
    assert source.describe()["images"] == 45
    assert "skipped 2 of 47 files" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_folder_reads_other_modes(tmp_path, mode):
    for name in "ab":
        image = Image.new("L", (8, 8), 0) if mode in ("P", "1") else Image.new(mode, (8, 8))
        image.convert(mode).save(tmp_path / f"{name}.{'tif' if mode in ('CMYK', 'I;16') else 'png'}")
    assert ImageFolder(tmp_path, 4).batch(2, generator()).shape == (2, 3, 4, 4)


def test_celeba_keeps_the_central_140_pixels(tmp_path):
    pixels = np.zeros((218, 178, 3), dtype=np.uint8)
    pixels[39:179, 19:159, 0] = 255  # exactly the square that is kept is red
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    image = CelebA(tmp_path, 10).batch(1, generator())[0]
    assert torch.equal(image, torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 10, 10))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: ImageFolder(path / "nowhere"), "which is no folder"),
        (lambda path: ImageFolder(path), "holds 0 readable images"),
        (lambda path: ImageFolder(path, 0), '"size" is 0'),
        (lambda path: DeadLeaves(2), '"size" is 2'),
        (lambda path: DeadLeaves(8, 2), '"channels" is 2'),
        (lambda path: DeadLeaves(8, pool=0), '"pool" is 0'),
        (lambda path: DeadLeaves(8, seed=10**9), '"seed" is 1000000000'),
    ],
)
def test_refusals(tmp_path, make, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path)
