"""Quality: how near a set of samples is to a set of real images.

Rooms:
    comparison  compare(): all distances of two sets, and how many samples they need; psnr().
    distances   Frechet, sliced Wasserstein, told apart by a classifier.
    features    of Inception, of a network of your own, random ones.
    digits      real digits in three parts, and a small classifier.
    intervals   bootstrap intervals, and the noise floor of a distance.
"""

from multilevel_diffusion.quality.comparison import Comparison, compare, psnr, samples_needed
from multilevel_diffusion.quality.digits import DigitSets, digit_classifier, digit_sets, grey_levels
from multilevel_diffusion.quality.distances import frechet_distance, sliced_wasserstein, two_sample_classifier
from multilevel_diffusion.quality.features import RandomFeatures, fid, in_batches, inception_fid
from multilevel_diffusion.quality.intervals import Interval, bootstrap, split_halves

__all__ = [
    "Comparison",
    "DigitSets",
    "Interval",
    "RandomFeatures",
    "bootstrap",
    "compare",
    "digit_classifier",
    "digit_sets",
    "fid",
    "frechet_distance",
    "grey_levels",
    "in_batches",
    "inception_fid",
    "psnr",
    "samples_needed",
    "sliced_wasserstein",
    "split_halves",
    "two_sample_classifier",
]
