"""Laws of the trees: sub-grids of one grid see one path, bit for bit, and draw no more normals than they must.

Statistical tests have fixed seeds and state their level.
"""

import copy
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multilevel_sde as mls
from multilevel_sde.noise.levy import LevyWalk
from multilevel_sde.noise.trees import GridTree, TickTree

DOUBLE = torch.float64
EVEN = torch.linspace(0.0, 1.0, 1001, dtype=DOUBLE)
UNEVEN = torch.cat([torch.zeros(1, dtype=DOUBLE), torch.logspace(-6, 0, 60, dtype=DOUBLE)])


def thinned(cells, steps):
    return torch.linspace(0, cells, steps + 1, dtype=DOUBLE).round().long().tolist()


def normals(points, tree):
    """How many normals the increments take, all of them different."""
    nodes = []

    def draw(node, deviation):
        nodes.append(node)
        return torch.zeros(1, 1)

    assert len(list(LevyWalk(points, tree, draw, limit=0).increments())) == len(points) - 1
    assert len(nodes) == len(set(nodes))
    return len(nodes)


# -- what it costs ----------------------------------------------------------------------------------------------------


@given(st.data())
def test_some_steps_of_a_grid_take_few_normals(data):
    """N (1 + log2(F / N)) and a tenth, for the trees are not quite even; even steps, any steps, steps in a row."""
    cells = data.draw(st.sampled_from([50, 100, 999, 1000, 1024, 4096]))
    steps = data.draw(st.integers(1, cells))
    start = data.draw(st.integers(0, cells - steps))
    inner = data.draw(st.sets(st.integers(1, cells - 1), min_size=min(steps, 100) - 1, max_size=min(steps, 100) - 1))
    tree = GridTree.of(torch.arange(cells + 1))
    for points in (thinned(cells, steps), [0, *sorted(inner), cells], list(range(start, start + steps + 1))):
        steps = len(points) - 1
        assert normals(points, tree) <= 2 + 1.1 * steps * (1 + math.log2(cells / steps))
        assert normals(points[::-1], tree) == normals(points, tree)


@pytest.mark.parametrize("cells", [1, 2, 37, 128, 1000, 1001])
def test_a_solve_on_the_whole_grid_draws_one_normal_a_step(cells):
    assert normals(range(cells + 1), GridTree.of(torch.arange(cells + 1).square())) == cells


EVEN_STEPS = {  # steps: normals of the stated grid, and of 1000 cells
    1: (1, 1),
    2: (2, 2),
    5: (6, 6),
    10: (10, 10),
    20: (20, 20),
    50: (60, 60),
    100: (100, 100),
    128: (224, 216),
    200: (320, 304),
    500: (816, 796),
    512: (1312, 732),
    1000: (1120, 1000),
}


@pytest.mark.parametrize(("steps", "counts"), EVEN_STEPS.items())
def test_even_steps_take_little_more_than_one_normal_each(steps, counts):
    trees = TickTree(1.0), GridTree.of(EVEN)
    assert tuple(normals(thinned(tree.cells, steps), tree) for tree in trees) == counts


# -- one path ---------------------------------------------------------------------------------------------------------


@given(cuts=st.sets(st.integers(0, 60), min_size=2, max_size=30), others=st.sets(st.integers(0, 60)))
@pytest.mark.parametrize("grid", [None, UNEVEN], ids=["stated", "given"])
@pytest.mark.parametrize("shape", [(2,), (70_000,)], ids=["at once", "node by node"])
def test_an_interval_has_the_same_bits_in_every_sub_grid(grid, shape, cuts, others):
    """Whatever else is asked, in whatever order, of whatever part of the batch."""
    if shape[0] > 2:
        cuts, others = set(sorted(cuts)[:4]), set(sorted(others)[:4])
    times = torch.arange(61, dtype=DOUBLE) / 60 if grid is None else grid
    places = sorted(cuts)
    apart = [place for place in others if not places[0] < place < places[-1]]
    more = sorted({*places, *apart})
    path = mls.BrownianPath([3, 4], grid=grid, shape=shape)
    few = list(path.increments(times[places])) if len(cuts) > 1 else []
    many = dict(zip(itertools.pairwise(more), path.increments(times[more]), strict=True))
    alone = path.subset([1])
    for (low, high), increment in reversed(list(zip(itertools.pairwise(places), few, strict=True))):
        assert torch.equal(many[low, high], increment)
        assert torch.equal(alone(float(times[low]), float(times[high]))[0], increment[1])


@pytest.mark.parametrize("grid", [None, EVEN, UNEVEN], ids=["stated", "even", "uneven"])
def test_refined_at_once_or_node_by_node_is_the_same(grid, monkeypatch):
    times = EVEN[::8] if grid is None else grid
    path = mls.BrownianPath(range(3), grid=grid, shape=(7,))
    at_once = torch.stack(list(path.increments(times)))
    monkeypatch.setattr("multilevel_sde.noise.brownian._CHUNK", 0)
    assert torch.equal(torch.stack(list(path.increments(times))), at_once)


@pytest.mark.parametrize("grid", [None, EVEN, UNEVEN], ids=["stated", "even", "uneven"])
def test_two_sub_grids_have_the_joint_law_of_one_brownian_motion(grid):
    """E[dW_i dW_j] is the length of the overlap: 20 000 pairs, 20 entries within 4.5 errors, level 1.4e-4."""
    times = EVEN if grid is None else grid
    cells = len(times) - 1
    first = [round(part * cells) for part in (0.05, 0.2, 0.31, 0.7, 1)]
    second = [round(part * cells) for part in (0, 0.1, 0.25, 0.3, 0.8, 1)]
    path = mls.BrownianPath(range(5000), grid=grid, shape=(4,), dtype=DOUBLE)
    a, b = (torch.stack(list(path.increments(times[places]))).flatten(1) for places in (first, second))
    measured = a @ b.T / a.shape[1]
    for i, (lo, hi) in enumerate(itertools.pairwise(first)):
        for j, (low, high) in enumerate(itertools.pairwise(second)):
            overlap = max(0.0, float(times[min(hi, high)] - times[max(lo, low)]))
            variances = float(times[hi] - times[lo]) * float(times[high] - times[low])
            error = math.sqrt((variances + overlap**2) / a.shape[1])
            assert abs(float(measured[i, j]) - overlap) < 4.5 * error


def test_short_steps_beside_long_ones_keep_their_digits_in_float32():
    """From 1e-12 to 1: the shorter part of every split is drawn, so that no digit is lost to the longer one."""
    times = torch.cat([torch.zeros(1, dtype=DOUBLE), torch.logspace(-12, 0, 40, dtype=DOUBLE)])
    for grid in (times, 1.0 - times.flip(0)):
        single, double = (
            torch.stack(list(mls.BrownianPath([1, 2], grid=grid, shape=(50,), dtype=dtype).increments(grid)))
            for dtype in (torch.float32, DOUBLE)
        )
        deviations = grid.diff().sqrt()[:, None, None]
        assert ((single - double).abs() < 1e-5 * deviations).all()
        assert (double.square().mean((1, 2)) / grid.diff() - 1).abs().max() < 4.5 * math.sqrt(2 / 100)


def test_equal_grids_share_a_tree_also_after_pickling():
    path = mls.BrownianPath([1], grid=EVEN, shape=(2,))
    assert mls.BrownianPath([2], grid=EVEN)._tree is path._tree
    for twin in (copy.deepcopy(path), pickle.loads(pickle.dumps(path))):
        assert twin._tree is path._tree
        assert torch.equal(twin(0.0, 0.25), path(0.0, 0.25))
