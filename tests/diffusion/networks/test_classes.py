"""Classes: labels follow their images, the null class is none, guidance is affine between two networks."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

import multilevel_sde as mls
from multilevel_diffusion import CosineSchedule, EpsilonDenoiser, VDenoiser
from multilevel_diffusion.networks.fingerprints import fingerprint
from multilevel_diffusion.networks.guidance import Guided
from multilevel_diffusion.networks.image_folder import ImageFolder
from multilevel_diffusion.networks.image_ladders import OwnLadder, class_labels, pilot_name
from multilevel_diffusion.networks.store import load_ladder, save_ladder
from multilevel_diffusion.networks.training import train, train_ladder
from multilevel_diffusion.networks.training_state import Run, TrainSettings
from multilevel_diffusion.networks.unet import UNet, UNetConfig

CONFIG = UNetConfig(4, 1, 0, levels=1, image_size=8, channels=3, time_dim=8, classes=2)
T = torch.tensor(0.4)


@pytest.fixture
def folder(tmp_path):
    """Forty images of black and white, in a folder for each."""
    for grey, name in ((0, "black"), (255, "white")):
        (tmp_path / "photos" / name / "more").mkdir(parents=True)
        for index in range(20):
            place = tmp_path / "photos" / name / ("more" if index % 2 else "")
            Image.new("RGB", (9, 8), (grey,) * 3).save(place / f"{index:02d}.png")
    return tmp_path / "photos"


def network(config=CONFIG, seed=0):
    """A network with random weights everywhere, the class vectors and the head included."""
    torch.manual_seed(seed)
    net = UNet(config)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval().requires_grad_(False)


def states(n=5):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_labels_are_those_of_the_subfolders(folder):
    source = ImageFolder(folder, 8, labelled=True)
    assert source.classes == ("black", "white")
    images, labels = source.labelled_batch(200, torch.Generator().manual_seed(0))
    assert torch.equal(images[:, 0, 0, 0], 2.0 * labels - 1)
    assert 0 < labels.sum() < 200
    assert torch.equal(source.held_out(9)[:, 0, 0, 0], 2.0 * source.held_out_labels(9) - 1)
    assert source.describe()["classes"] == ["black", "white"]
    assert torch.equal(images, ImageFolder(folder, 8).batch(200, torch.Generator().manual_seed(0)))


def test_folders_without_classes_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="has images in 1 subfolder, expected at least 2 classes"):
        ImageFolder(folder.parent, 8, labelled=True)
    Image.new("L", (8, 8)).save(folder / "loose.png")
    with pytest.raises(ValueError, match="where 1 images lie beside the subfolders"):
        ImageFolder(folder, 8, labelled=True)


def test_each_row_sees_its_own_label():
    net, x, labels = network(), states(), torch.tensor([0, 1, 2, 1, 0])
    for order in ([0, 1, 2, 3, 4], [4, 2, 0]):
        alone = torch.cat([net(x[i : i + 1], T, label=labels[i : i + 1]) for i in order])
        torch.testing.assert_close(net(x[order], T, label=labels[order]), alone)
    assert (net(x, T, label=labels) - net(x, T, label=1 - labels.clamp(max=1))).abs().amin((1, 2, 3)).max() > 0


def test_no_label_is_the_null_class():
    net, x = network(), states()
    torch.testing.assert_close(net(x, T), net(x, T, label=torch.full((5,), 2)))
    assert not torch.allclose(net(x, T), net(x, T, label=torch.zeros(5, dtype=torch.long)))


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (torch.tensor([0, 1, 3, 0, 0]), r'"label" must lie between 0 and 1 \(or be 2 for none\), got 0 to 3'),
        (torch.tensor([0]), r'"label" must be integers of shape \(5,\)'),
        (torch.zeros(5), '"label" must be integers'),
    ],
)
def test_wrong_labels_are_refused(label, words):
    with pytest.raises(ValueError, match=words):
        network()(states(), T, label=label)
    with pytest.raises(ValueError, match='"label" was given to a network without classes'):
        network(replace(CONFIG, classes=0))(states(), T, label=torch.zeros(5, dtype=torch.long))


def test_networks_without_classes_are_what_they_were():
    plain = replace(CONFIG, classes=0)
    assert "classes" not in plain.to_dict()
    assert UNetConfig.from_dict(CONFIG.to_dict()) == CONFIG
    torch.manual_seed(3)
    before = UNet(plain).state_dict()
    torch.manual_seed(3)
    after = UNet(CONFIG).state_dict()
    assert set(after) - set(before) == {"classes.weight"}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# -- guidance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: EpsilonDenoiser(f, CosineSchedule())])
def test_scale_one_is_the_conditional_network_and_zero_the_unconditional(wrap):
    net, x, labels = wrap(network()), states(), torch.tensor([0, 1, 0, 1, 1])
    null = {"label": 2}
    conditional, unconditional = net(x, T, label=labels), net(x, T, label=torch.full((5,), 2))
    torch.testing.assert_close(Guided(net, 1.0, null)(x, T, label=labels), conditional)
    torch.testing.assert_close(Guided(net, 0.0, null)(x, T, label=labels), unconditional)
    expected = unconditional + 2.5 * (conditional - unconditional)
    torch.testing.assert_close(Guided(net, 2.5, null)(x, T, label=labels), expected, rtol=1e-4, atol=1e-5)
    assert (conditional - unconditional).abs().max() > 1e-3


def test_both_halves_are_one_doubled_batch():
    seen = []

    def net(x, t, label, weight):
        seen.append((len(x), t.tolist(), label.tolist(), weight.tolist()))
        return x * 0

    Guided(net, 2.0, {"label": 7})(
        torch.zeros(2, 1), torch.tensor([0.25, 0.5]), label=torch.tensor([3, 4]), weight=torch.tensor([5, 6])
    )
    assert seen == [(4, [0.25, 0.5, 0.25, 0.5], [3, 4, 7, 7], [5, 6, 5, 6])]


def test_guidance_of_a_v_network_is_that_of_its_noise():
    """The relation of x_0 and v is affine, so one may guide the network or the denoiser."""
    net, x, labels = network(), states(), torch.tensor([0, 1, 0, 1, 1])
    inside = VDenoiser(Guided(net, 3.0, {"label": 2}), CosineSchedule())(x, T, label=labels)
    outside = Guided(VDenoiser(net, CosineSchedule()), 3.0, {"label": 2})(x, T, label=labels)
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Guided(3, 1.0, {"label": 2}), '"denoiser" must be a callable'),
        (lambda: Guided(network(), float("nan"), {"label": 2}), '"scale" must be a finite number, got nan'),
        (lambda: Guided(network(), 1.0, {}), '"null" is empty'),
        (lambda: Guided(network(), 1.0, {"label": 2})(states(), T), '"conditions" lacks "label"'),
    ],
)
def test_wrong_guidance_is_refused(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


# -- training ----------------------------------------------------------------------------------------------------------


def test_a_tenth_of_the_labels_are_left_out_in_training(folder):
    seen = []
    run = Run(
        CONFIG, ImageFolder(folder, 8, labelled=True), CosineSchedule(), TrainSettings(40, 50), torch.device("cpu")
    )
    forward = run.network.forward
    run.network.forward = lambda x, t, label: seen.append(label) or forward(x, t, label=label)
    for _ in range(40):
        run.advance()
    share = (torch.cat(seen) == 2).double().mean()
    assert abs(share - 0.1) < 4 * (0.09 / 2000) ** 0.5


def test_a_conditional_network_learns_its_classes(folder, tmp_path):
    """Black and white images: the best estimate of a class is its one image, of none between them."""
    settings = TrainSettings(steps=300, batch_size=32, learning_rate=2e-2, warmup=10, ema_decay=0.9)
    source = ImageFolder(folder, 8, labelled=True)
    trained = train(CONFIG, source, CosineSchedule(), tmp_path / "run", settings, progress=False)
    denoise = EpsilonDenoiser(trained.network, CosineSchedule(), clip=(-1, 1))
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    black, white = (denoise(x, torch.tensor(0.95), label=torch.full((64,), k)).mean() for k in (0, 1))
    assert white - black > 0.3  # without its label a network would say the same of both
    assert black - 0.1 < denoise(x, torch.tensor(0.95)).mean() < white + 0.1


def test_a_ladder_records_its_classes_and_loads_with_them(folder, tmp_path):
    configs, settings = [CONFIG, replace(CONFIG, base_dim=8)], [TrainSettings(10, 4)] * 2
    source = ImageFolder(folder, 8, labelled=True)
    ladder = train_ladder(configs, source, CosineSchedule(), tmp_path / "mine", settings, progress=False)
    assert json.loads((tmp_path / "mine" / "ladder.json").read_text())["classes"] == ["black", "white"]
    assert ladder.classes == ("black", "white")
    assert class_labels(ladder, ["white", "0"]).tolist() == [1, 0]
    with pytest.raises(
        ValueError, match=r"\"--label\" is 'grey', expected a class \(black, white\) or its number 0 to 1"
    ):
        class_labels(ladder, ["grey"])
    again = train_ladder(configs, source, CosineSchedule(), tmp_path / "mine", settings, progress=False)
    assert again.digest == ladder.digest != load_ladder(tmp_path / "mine").guided(2.0).digest
    x, label = states(2), torch.tensor([0, 1])
    assert torch.equal(
        ladder.ladder.drifts[1](x, T, label=label),
        EpsilonDenoiser(ladder.networks[1], ladder.schedule, (-1, 1))(x, T, label=label),
    )
    guided = ladder.guided(2.0)
    assert guided.ladder.costs == tuple(2 * cost for cost in ladder.ladder.costs)
    assert guided.ladder.drifts[0](x, T, label=label).shape == x.shape
    with pytest.raises(ValueError, match='was made for 2 classes, "classes" names 0'):
        save_ladder(tmp_path / "other", [network()], CosineSchedule())


def test_labels_need_a_source_that_has_them(folder):
    with pytest.raises(ValueError, match='"config" is for 2 classes, "source" knows 0; give a source with labels'):
        Run(CONFIG, ImageFolder(folder, 8), CosineSchedule(), TrainSettings(1), torch.device("cpu"))


def test_names_of_pilots_tell_guided_ladders_apart():
    assert pilot_name("ddim", None) == "pilot_ddim.safetensors"
    assert pilot_name("ddim", 1.5) == "pilot_ddim_guidance_1.5.safetensors"


# -- own ladders -------------------------------------------------------------------------------------------------------


class Scaled:
    """A denoiser with a number."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x, t):
        return self.scale * x


GLOBAL = nn.Linear(2, 2)


def test_fingerprints_see_numbers_weights_and_what_functions_hold():
    net = nn.Linear(3, 3)
    known = fingerprint([Scaled(0.5), net, lambda x, t: net(x), lambda x, t: GLOBAL(x)])
    assert known == fingerprint([Scaled(0.5), net, lambda x, t: net(x), lambda x, t: GLOBAL(x)])
    assert fingerprint(Scaled(0.5)) != fingerprint(Scaled(0.6))
    with torch.no_grad():
        net.weight[0, 0] += 1e-6
    changed = fingerprint([Scaled(0.5), net, lambda x, t: net(x), lambda x, t: GLOBAL(x)])
    assert changed != known
    with torch.no_grad():
        GLOBAL.weight[0, 0] += 1e-6
    assert fingerprint([Scaled(0.5), net, lambda x, t: net(x), lambda x, t: GLOBAL(x)]) != changed
    circle = Scaled(1.0)
    circle.own = circle
    assert fingerprint(circle) == fingerprint(circle)


def own(**changes):
    denoisers = [EpsilonDenoiser(network(replace(CONFIG, classes=0), seed), CosineSchedule()) for seed in (0, 1)]
    return OwnLadder(mls.Ladder(denoisers, [1.0, 4.0]), CosineSchedule(), (3, 8, 8), **changes)


def test_an_own_ladder_is_known_by_what_it_computes():
    assert own().digest == own().digest
    assert len({own().digest, own(version="2").digest}) == 2
    used = own()
    used.ladder.drifts[0](states(), T)
    assert used.digest == own().digest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((3, CosineSchedule(), (3, 8, 8)), '"ladder" must be a multilevel_sde.Ladder'),
        ((mls.Ladder([Scaled(1.0)], [1.0]), None, (3, 8, 8)), '"schedule" must be a NoiseSchedule'),
        ((mls.Ladder([Scaled(1.0)], [1.0]), CosineSchedule(), (3, 0, 8)), '"image_shape" must hold positive integers'),
    ],
)
def test_own_ladders_refuse_what_is_none(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        OwnLadder(*arguments)
