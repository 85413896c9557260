"""Laws of the distances between sets of images: closed forms, other libraries, coverage of intervals."""

import math
import re
import sys

import pytest
import torch
from places import DOCS
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance

from multilevel_diffusion.networks.data import Digits
from multilevel_diffusion.networks.dead_leaves_images import dead_leaves
from multilevel_diffusion.quality.digits import digit_classifier, digit_sets, grey_levels
from multilevel_diffusion.quality.distances import frechet_distance, sliced_wasserstein, two_sample_classifier
from multilevel_diffusion.quality.features import RandomFeatures, fid, in_batches, inception_fid
from multilevel_diffusion.quality.intervals import bootstrap, split_halves


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def exactly(mean, root, n, seed):
    """Return n samples whose sample mean is `mean` and whose sample covariance is root root^T, to rounding."""
    x = normal(n, len(mean), seed=seed)
    white = torch.linalg.qr(x - x.mean(0))[0] * (n - 1) ** 0.5
    return mean + white @ root.T


class TestFrechetDistance:
    def test_of_gaussians_with_diagonal_covariances(self):
        first, second = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 0.25, 0.5]).double()
        shift = torch.tensor([0.5, 0.0, -1.0]).double()
        a, b = exactly(0 * shift, first.diag(), 40, 1), exactly(shift, second.diag(), 25, 2)
        expected = shift.square().sum() + (first - second).square().sum()
        assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)

    def test_of_covariances_that_do_not_commute(self):
        roots = normal(2, 4, 4, seed=3)
        a, b = (exactly(torch.zeros(4).double(), root, 50, seed) for seed, root in enumerate(roots))
        first, second = (root @ root.T for root in roots)
        cross = torch.as_tensor(sqrtm((first @ second).numpy())).real
        assert frechet_distance(a, b) == pytest.approx(float(torch.trace(first + second - 2 * cross)), rel=1e-8)

    def test_is_zero_for_the_same_set_and_symmetric(self):
        a, b = normal(30, 5), 2 * normal(40, 5, seed=1) + 1
        assert 0 <= frechet_distance(a, a) < 1e-12
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)

    def test_is_the_same_in_turned_and_moved_features(self):
        a, b = normal(30, 5), 2 * normal(40, 5, seed=1) + 1
        turn = torch.linalg.qr(normal(5, 5, seed=2))[0]
        assert frechet_distance(a @ turn + 3, b @ turn + 3) == pytest.approx(frechet_distance(a, b), rel=1e-10)

    def test_of_fewer_samples_than_features(self):
        a, b = normal(6, 20), normal(5, 20, seed=1)
        first, second = (torch.cov(x.T).numpy() for x in (a, b))
        cross = torch.as_tensor(sqrtm(first @ second + 1e-18)).real
        expected = (a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * torch.trace(cross)
        assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-3)

    def test_of_images_is_that_of_their_pixels(self):
        a, b = normal(9, 2, 3, 2), normal(8, 2, 3, 2, seed=1)
        assert frechet_distance(a, b) == frechet_distance(a.flatten(1), b.flatten(1))


class TestSlicedWasserstein:
    @pytest.mark.parametrize("m", [1001, 600, 7])
    def test_in_one_dimension_is_the_wasserstein_distance(self, m):
        a, b = normal(600, 1), 1.5 * normal(m, 1, seed=1) + 0.3
        expected = wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
        assert sliced_wasserstein(a, b, 3, generator()) == pytest.approx(expected, rel=1e-12)

    def test_is_the_mean_over_the_directions(self):
        a, b = normal(30, 4), normal(20, 4, seed=1) + 1
        v = torch.randn(4, 6, generator=generator(5), dtype=torch.float64)
        each = [wasserstein_distance((a @ w).numpy(), (b @ w).numpy()) / float(w.norm()) for w in v.T]
        assert sliced_wasserstein(a, b, 6, generator(5)) == pytest.approx(sum(each) / 6, rel=1e-12)

    def test_of_a_shift_is_the_mean_cosine(self):
        a = normal(10, 2)
        found = sliced_wasserstein(a, a + torch.tensor([3.0, 4.0]), 4000, generator(1))
        # mean |cos| is 2 / pi with standard deviation 0.308: within four standard errors
        assert abs(found / 5 - 2 / math.pi) < 4 * 0.308 / 4000**0.5

    def test_of_the_same_set_is_zero(self):
        assert sliced_wasserstein(normal(10, 3), normal(10, 3), 5, generator()) == 0


class TestTwoSampleClassifier:
    def test_of_one_distribution_covers_one_half(self):
        misses = 0
        for seed in range(40):
            found = two_sample_classifier(
                normal(60, 3, seed=2 * seed), normal(60, 3, seed=2 * seed + 1), generator(seed)
            )
            misses += not found.low <= 0.5 <= found.high
        assert misses <= 7  # 40 intervals of 95%: more than 7 misses have probability 0.1%

    def test_of_distributions_apart_is_one(self):
        found = two_sample_classifier(normal(50, 3), normal(80, 3, seed=1) + 20, generator())
        assert (found.estimate, found.high) == (1.0, 1.0)
        assert found.low == pytest.approx(1 / (1 + 1.96**2 / 100), rel=1e-4)  # Wilson's for 100 of 100

    def test_sees_a_difference_of_covariances(self):
        assert two_sample_classifier(normal(150, 3), 3 * normal(150, 3, seed=1), generator()).low > 0.6

    def test_is_on_unseen_samples(self):
        from sklearn.neighbors import KNeighborsClassifier

        nearest = KNeighborsClassifier(1)  # right on all that it was fitted to
        found = two_sample_classifier(normal(200, 3), normal(200, 3, seed=1), generator(), classifier=nearest)
        assert found.estimate < 0.6

    def test_takes_a_random_part_of_the_larger_set(self):
        a, apart = normal(60, 2), torch.cat([normal(60, 2, seed=1), normal(540, 2, seed=2) + 20])
        assert two_sample_classifier(a, apart, generator()).estimate > 0.8  # the first 60 alone would look alike
        assert two_sample_classifier(apart, a, generator()).estimate > 0.8


class TestBootstrap:
    def test_formulas(self):
        values = iter([10.0, 1.0, 2.0, 3.0, 4.0, 5.0])
        found = bootstrap(lambda x: next(values), torch.zeros(3), generator=generator(), resamples=5, level=0.5)
        assert (found.raw, found.estimate, found.low, found.high) == (10.0, 17.0, 16.0, 18.0)

    def test_covers_the_distance_of_known_gaussians(self):
        covered, raw, estimates = 0, 0.0, 0.0
        for seed in range(60):
            a, b = normal(150, 4, seed=2 * seed), 1.5 * normal(150, 4, seed=2 * seed + 1) + 0.5
            found = bootstrap(frechet_distance, a, b, generator=generator(seed), resamples=60, level=0.9)
            covered += found.low <= 4 * 0.5**2 + 4 * 0.5**2 <= found.high
            raw, estimates = raw + found.raw / 60, estimates + found.estimate / 60
        # 60 intervals of 90%: outside 44 to 60 has probability 0.1%; the bootstrap's own error is of order 1 / N
        assert covered >= 45
        assert abs(estimates - 2) < 0.5 * abs(raw - 2)

    def test_draws_sets_independently_and_with_replacement(self):
        a, drawn = torch.arange(50), []
        bootstrap(lambda x, y: drawn.append((x, y)) or 0.0, a, a + 100, generator=generator(), resamples=2)
        (x0, y0), (x1, y1), (x2, _) = drawn
        assert torch.equal(x0, a)
        assert torch.equal(y0, a + 100)
        assert len(x1) == 50
        assert 20 < len(x1.unique()) < 45
        assert not torch.equal(x1 + 100, y1)
        assert not torch.equal(x1, x2)

    def test_the_same_generator_draws_the_same_samples(self):
        one, two = [], []
        bootstrap(lambda x: one.append(x) or 0.0, torch.arange(9), generator=generator(3), resamples=2)
        bootstrap(lambda x: two.append(x) or 0.0, torch.arange(9) * 2, generator=generator(3), resamples=2)
        assert all(torch.equal(2 * x, y) for x, y in zip(one, two, strict=True))


def test_split_halves_have_nothing_in_common():
    parts = []
    found = split_halves(lambda a, b: parts.append((a, b)) or float(len(parts)), torch.arange(9), generator(), splits=3)
    assert all(len(a) == len(b) == 4 and len(torch.cat([a, b]).unique()) == 8 for a, b in parts)
    assert not torch.equal(parts[0][0], parts[1][0])
    assert (found.estimate, found.raw) == (2.0, 2.0)
    assert (found.low, found.high) == pytest.approx((1.05, 2.95))


class StandIn(torch.nn.Module):
    """A feature extractor that takes the place of Inception: bytes (B, 3, H, W) to (B, 4)."""

    num_features = 4

    def forward(self, x):
        x = x.double() / 255
        return torch.cat([x.mean((2, 3)), x[:, :1].std((2, 3))], 1)


class TestFID:
    def test_is_the_distance_of_features_whatever_the_batch(self):
        a, b, features = normal(30, 3, 4, 4), normal(20, 3, 4, 4, seed=1), StandIn()
        expected = frechet_distance(features(a), features(b))
        assert fid(a, b, features, batch=7) == pytest.approx(expected, rel=1e-12)
        assert not in_batches(lambda x: x * torch.ones(1, requires_grad=True), a).requires_grad

    @pytest.mark.parametrize("channels", [1, 3])
    def test_agrees_with_torchmetrics(self, channels):
        torchmetrics = pytest.importorskip("torchmetrics.image.fid")
        metric = torchmetrics.FrechetInceptionDistance(feature=StandIn())
        a, b = (normal(n, channels, 6, 6, seed=n) for n in (40, 50))
        as_bytes = [((x.clamp(-1, 1) + 1) * 127.5).round().expand(-1, 3, -1, -1) for x in (a, b)]
        for _ in range(2):  # the second time tells whether the metric was reset
            assert inception_fid(a, b, metric=metric, batch=16) == pytest.approx(fid(*as_bytes, StandIn()), rel=1e-4)

    def test_tells_the_metric_which_images_are_real(self):
        class Metric(list):
            def reset(self):
                self.clear()

            def update(self, images, real):
                self.append((real, len(images), int(images[0, 0, 0, 0])))

            def compute(self):
                return 0.0

        metric = Metric()
        inception_fid(torch.zeros(3, 3, 8, 8), torch.ones(5, 1, 8, 8), metric=metric, batch=4)
        assert metric == [(True, 4, 255), (True, 1, 255), (False, 3, 128)]

    def test_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
        with pytest.raises(ImportError, match="pip install torchmetrics torch-fidelity"):
            inception_fid(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))


class TestRandomFeatures:
    def test_depend_on_their_seed_alone(self):
        images = dead_leaves(range(3), 16)
        before = torch.random.get_rng_state()
        found = [RandomFeatures(3, seed=seed)(images) for seed in (0, 0, 1)]
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(found[0], found[1])
        assert not torch.allclose(found[0], found[2])

    def test_see_blur_and_no_colour(self):
        real, features = dead_leaves(range(128), 16), RandomFeatures(3)
        blurred = torch.nn.functional.avg_pool2d(real[:64], 3, stride=1, padding=1, count_include_pad=False)
        floor = split_halves(lambda a, b: fid(a, b, features), real, generator(), splits=10)
        assert fid(blurred, real[64:], features) > 2 * floor.high
        tinted = real + torch.tensor([0.5, 0.0, -0.5])[:, None, None]
        assert torch.allclose(features(tinted), features(real), atol=1e-4)


class TestDigits:
    def test_parts_are_all_of_the_digits_and_share_none(self):
        sets = digit_sets()
        assert torch.equal(sets.held_out[1::4], Digits().held_out(300)[1::4])
        whole = torch.cat([part[1::4] for part in (sets.held_out, sets.floor, sets.training)])  # those not moved
        assert len(whole.unique(dim=0)) == len(whole)
        for part in (sets.held_out, sets.floor, sets.training):
            assert part[0::4, ..., -1].eq(-1).all()  # moved to the left
            assert part[3::4, ..., 0].eq(-1).all()
            assert not part[1::4, ..., -1].eq(-1).all()

    def test_classifier_knows_digits_that_it_has_not_seen(self):
        sets = digit_sets()
        network = digit_classifier(sets, steps=200)
        right = network(sets.held_out).argmax(1) == sets.held_out_labels
        assert float(right.double().mean()) > 0.9
        again = digit_classifier(sets, steps=3)
        assert torch.equal(digit_classifier(sets, steps=3)[0].weight, again[0].weight)
        assert not torch.equal(digit_classifier(sets, seed=1, steps=3)[0].weight, again[0].weight)

    def test_real_digits_have_the_grey_levels(self):
        real = Digits().held_out(50)
        assert torch.equal(grey_levels(real), real)
        assert len(grey_levels(torch.linspace(-2, 2, 999)).unique()) == 17


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: frechet_distance(torch.zeros(5, 2), torch.zeros(5, 3)), "of one shape"),
        (lambda: frechet_distance(torch.zeros(5), torch.zeros(5)), "of one shape"),
        (lambda: frechet_distance(torch.zeros(5, 2), torch.zeros(1, 2)), '"b" must hold at least two'),
        (lambda: frechet_distance(torch.full((5, 2), math.nan), torch.zeros(5, 2)), '"a" must hold at least two'),
        (lambda: sliced_wasserstein(torch.zeros(5, 2), torch.zeros(5, 2), 0, generator()), '"directions" is 0'),
        (lambda: two_sample_classifier(torch.zeros(9, 2), torch.zeros(4, 2), generator()), '"folds" is 5'),
        (lambda: bootstrap(lambda: 0.0, generator=generator()), "at least one"),
        (lambda: bootstrap(lambda x: 0.0, torch.zeros(3), generator=generator(), resamples=1), "at least 2"),
        (lambda: bootstrap(lambda x: 0.0, torch.zeros(3), generator=generator(), level=1.0), r"in \(0, 1\)"),
        (lambda: split_halves(frechet_distance, torch.zeros(3, 2), generator()), "at least 4"),
        (lambda: inception_fid(torch.zeros(3, 2, 8, 8), torch.zeros(3, 3, 8, 8)), '"samples" must have shape'),
        (lambda: inception_fid(torch.zeros(3, 3, 8, 8), torch.zeros(3, 8, 8)), '"reference" must have shape'),
    ],
)
def test_bad_arguments_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_the_example_of_the_page_runs(capsys):
    page = (DOCS / "quality.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict = {}
    exec(compile(block, "docs/quality.md", "exec"), names)
    assert names["images"].shape == (128, 1, 8, 8)
    assert names["distance"].low < names["floor"].high
    assert "told apart" in capsys.readouterr().out
