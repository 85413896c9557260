"""Laws of recalled values: what is kept and for how long, files, and equality of the loop with one written by hand."""

import hashlib
import weakref
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

import multilevel_sde as mls

ENTRIES = [(1, 0, 0, -0.5), (3, 0, 0, 0.25), (2, 1, 1, 2.0), (2, 0, 1, -2.0)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_plan(steps=6, levels=3, seed=0):
    """Weights on about half the corrections, and recalls of about a third of all earlier values."""
    generator = torch.Generator().manual_seed(seed)
    weights = normal(steps, levels, seed=seed + 1) * (torch.rand(steps, levels, generator=generator) < 0.5)
    weights[:, 0] = 1.0
    chosen = torch.rand(steps, levels, steps, generator=generator) < 0.3
    places = [(n, k, m) for n, k, m in chosen.nonzero().tolist() if m < n]
    values = normal(len(places), seed=seed + 2).tolist()
    recall = mls.Recall([(*place, value) for place, value in zip(places, values, strict=True)])
    return mls.Plan(weights != 0, weights, recall=recall)


# -- the table and its reader -----------------------------------------------------------------------------------------


def test_a_value_is_kept_until_its_last_use_and_no_longer():
    recall, references = mls.Recall([(1, 0, 0, 1.0), (3, 0, 0, 1.0), (2, 1, 1, 1.0)]).reader(), {}
    alive = []
    for n in range(4):
        values = {k: torch.full((2,), 10.0 * n + k) for k in (0, 1)}
        references |= {(n, k): weakref.ref(value) for k, value in values.items()}
        recall(n, values)
        del values
        alive.append({place for place, reference in references.items() if reference() is not None})
    assert alive == [{(0, 0)}, {(0, 0), (1, 1)}, {(0, 0)}, set()]


def test_a_long_solve_holds_no_more_values_than_the_method_looks_back():
    references, alive = [], []

    def drift(y, t):
        value = -y
        alive.append(sum(reference() is not None for reference in references))
        references.append(weakref.ref(value))
        return value

    times = torch.linspace(0.0, 1.0, 41)
    ladder = mls.Ladder([drift], costs=[1.0])
    plan = mls.multistep(mls.em_plan(ladder, times), mls.adams_bashforth_weights(times, 3))
    mls.solve(ladder, torch.ones(2), times, plan, check_finite=False)  # the check looks back in blocks
    assert max(alive) <= 3  # two to look back at, and one that the loop has not let go of yet
    assert len(alive) == 40


def test_the_reader_adds_up_what_is_recalled_and_leaves_the_values_as_they_are():
    recall = mls.Recall([(2, 0, 0, 2.0), (2, 1, 0, -1.0), (2, 0, 1, 0.5), (3, 0, 0, 1.0)]).reader()
    first, other, second = torch.tensor([3.0]), torch.tensor([7.0]), torch.tensor([10.0])
    assert recall(0, {0: first, 1: other}) is None
    assert recall(1, {0: second}) is None
    assert recall(2, {0: torch.zeros(1)}) == torch.tensor([2.0 * 3.0 - 7.0 + 0.5 * 10.0])
    assert recall(3, {0: torch.zeros(1)}) == torch.tensor([3.0])
    assert (first.item(), other.item(), second.item()) == (3.0, 7.0, 10.0)


def test_entries_add_up_and_what_cancels_is_left_out():
    recall = mls.Recall(
        [(2, 0, 1, 1.5), (1, 1, 0, 0.5), (2, 0, 1, 2.0), (3, 0, 0, 1.0), (3, 0, 0, -1.0), (2, 2, 0, 0), (4, 0, 3, 9.0)]
    )
    assert recall.entries == [(1, 1, 0, 0.5), (2, 0, 1, 3.5), (4, 0, 3, 9.0)]
    assert len(recall) == 3
    assert recall.at(2) == [(0, 1, 3.5)]
    assert recall.at(3) == []
    assert recall.sources(4, 2).nonzero().tolist() == [[0, 1], [1, 0], [3, 0]]


def test_a_recall_cannot_be_changed_from_outside():
    recall = mls.Recall(ENTRIES)
    recall.places.zero_()
    recall.coefficients.zero_()
    assert recall == mls.Recall(reversed(ENTRIES))


@pytest.mark.parametrize(
    "other",
    [
        ENTRIES[:-1],
        [*ENTRIES, (3, 1, 1, 1.0)],
        [*ENTRIES[:-1], (2, 0, 1, -2.0 + 1e-15)],
        [*ENTRIES[:-1], (2, 0, 0, -2.0)],
        [*ENTRIES[:-1], (3, 0, 1, -2.0)],
        [*ENTRIES[:-1], (2, 1, 0, -2.0)],
    ],
)
def test_plans_differ_where_their_recalls_do(other):
    def plan(recall):
        return mls.Plan(torch.ones(4, 2, dtype=torch.bool), torch.ones(4, 2), recall=recall)

    assert plan(mls.Recall(ENTRIES)) == plan(mls.Recall(ENTRIES))
    assert plan(mls.Recall(ENTRIES)) != plan(mls.Recall(other))
    assert plan(mls.Recall(ENTRIES)) != plan(None)
    assert plan(mls.Recall([])) == plan(None)
    assert mls.Recall(ENTRIES) != ENTRIES


# -- the loop ---------------------------------------------------------------------------------------------------------

MATRICES = 0.5 * normal(3, 3, 3, seed=5)
LADDER = mls.Ladder([lambda y, t, k=k: torch.sin(y @ MATRICES[k] + (k + 1) * t) for k in range(3)], [1.0, 4.0, 16.0])
TIMES = torch.tensor([0.0, 0.1, 0.25, 0.3, 0.55, 0.8, 1.0], dtype=torch.float64)


def by_hand(y, plan, brownian=None):
    """The sums of the docstrings, every level evaluated at every step."""
    weights, values = plan.weights, []
    for n, (t, s) in enumerate(pairwise(TIMES)):
        values.append([drift(y, t) for drift in LADDER.drifts])
        estimate = torch.zeros_like(y)
        for k in range(3):
            below = values[n][k - 1] if k else torch.zeros_like(y)
            estimate = estimate + weights[n, k] * (values[n][k] - below)
        for step, k, m, coefficient in plan.recall.entries:
            if step == n:
                estimate = estimate + coefficient * values[m][k]
        y = y + (s - t) * estimate
        if brownian is not None:
            y = y + 0.3 * brownian(float(t), float(s))
    return y


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_solve_that_recalls_equals_a_loop_by_hand(seed, noisy):
    plan, y0 = random_plan(seed=seed), normal(4, 3, seed=9)
    assert plan.recall is not None
    assert len(plan.recall) > 5
    brownian = mls.BrownianPath(range(4), grid=TIMES, shape=(3,), dtype=torch.float64) if noisy else None
    options = {"diffusion": 0.3, "brownian": brownian} if noisy else {}
    found = mls.solve(LADDER, y0, TIMES, plan, **options)
    torch.testing.assert_close(found.y, by_hand(y0, plan, brownian), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("seed", range(2))
def test_gradients_flow_through_what_is_recalled(seed):
    plan, y0 = random_plan(seed=seed), normal(2, 3, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: mls.solve(LADDER, y, TIMES, plan).y, (y0,), atol=1e-8, rtol=1e-6)
    outward = normal(2, 3, seed=10)
    found = torch.autograd.grad((mls.solve(LADDER, y0, TIMES, plan).y * outward).sum(), y0)[0]
    expected = torch.autograd.grad((by_hand(y0, plan) * outward).sum(), y0)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_a_value_that_only_a_later_step_uses_is_evaluated_and_paid_for():
    weights = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    plain = mls.Plan(weights != 0, weights)
    recalling = mls.Plan(weights != 0, weights, recall=mls.Recall([(3, 1, 1, 0.5), (3, 0, 2, 0.5), (3, 1, 2, 1.0)]))
    calls = [0, 0]

    def drift(level):
        def f(y, t):
            calls[level] += 1
            return -(level + 1) * y

        return f

    ladder = mls.Ladder([drift(0), drift(1)], costs=[1.0, 10.0])
    assert plain.evaluations.tolist() == [2, 2]
    assert recalling.evaluations.tolist() == [3, 3]  # level 1 at step 1 and level 0 at step 2 are for later only
    stats = mls.solve(ladder, torch.ones(2), torch.linspace(0.0, 1.0, 5), recalling).stats
    assert calls == [3, 3] == list(stats.calls) == stats.evaluations.tolist()
    assert recalling.cost(ladder) == stats.cost == 33.0


@pytest.mark.parametrize("past", [0.0, 2.0])
def test_a_step_may_use_nothing_of_its_own(past):
    """Step 1 has no weight, but step 2 recalls it; with past = 0 its estimate is zero."""
    weights = torch.tensor([[1.0], [0.0], [0.0]])
    entries = [(1, 0, 0, past), (2, 0, 1, 3.0)]
    ladder = mls.Ladder([lambda y, t: y * y], costs=[1.0])
    weights[2] = 1.0
    plan = mls.Plan(weights != 0, weights, recall=mls.Recall(entries))
    y0 = torch.tensor([0.5], dtype=torch.float64)
    states = mls.solve(ladder, y0, [0.0, 1.0, 2.0, 3.0], plan, save=True).ys[:, 0].tolist()
    second = 0.75 + past * 0.25
    assert states == pytest.approx([0.5, 0.75, second, second + second**2 + 3 * 0.75**2], rel=1e-15)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remembers", [False, True])
def test_a_plan_survives_a_file(tmp_path, remembers):
    plan = random_plan()
    plan = plan if remembers else mls.Plan(plan.hits, plan.weights, truncated=True)
    plan.save(tmp_path / "plan.safetensors")
    assert mls.Plan.load(tmp_path / "plan.safetensors") == plan
    assert [file.name for file in tmp_path.iterdir()] == ["plan.safetensors"]


@pytest.mark.parametrize("remembers", [False, True])
def test_a_plan_survives_a_file_with_its_times(tmp_path, remembers):
    plan, path = random_plan(), tmp_path / "plan"
    plan = plan if remembers else mls.Plan(plan.hits, plan.weights)
    plan.save(path, times=TIMES)
    loaded, times = mls.Plan.load_with_times(path)
    assert loaded == plan == mls.Plan.load(path)
    assert times is not None
    assert torch.equal(times, TIMES)
    plan.save(path)
    assert mls.Plan.load_with_times(path)[1] is None


@pytest.mark.parametrize("times", [TIMES[:-1], torch.zeros(7, dtype=torch.float64), TIMES * torch.nan])
def test_times_that_are_none_for_the_plan_are_refused(tmp_path, times):
    with pytest.raises(ValueError, match='"times"'):
        random_plan().save(tmp_path / "plan", times=times)
    assert not list(tmp_path.iterdir())
    write(tmp_path / "plan", own(random_plan()) | {"times": times}, "2")
    with pytest.raises(ValueError, match="times"):
        mls.Plan.load_with_times(tmp_path / "plan")


def write(path, tensors, version, checksum=None):
    """A file as written by hand: the checksum is that of the format, over the shapes and contents in order."""
    shapes = " ".join(["0", *[str(tuple(tensor.shape)) for tensor in tensors.values()]])
    digest = hashlib.sha256(shapes.encode())
    for tensor in tensors.values():
        digest.update(tensor.numpy().tobytes())
    metadata = {"format": "multilevel_sde.plan", "version": version, "truncated": "0"}
    save_file(tensors, path, metadata | {"sha256": checksum or digest.hexdigest()})


def own(plan):
    return {"hits": plan.hits, "weights": plan.weights}


def remembered(plan):
    return own(plan) | {"recall_places": plan.recall.places, "recall_coefficients": plan.recall.coefficients}


def test_files_of_version_1_are_still_read(tmp_path):
    plan, path = random_plan(), tmp_path / "old.safetensors"
    write(path, own(plan), "1")
    assert mls.Plan.load(path) == mls.Plan(plan.hits, plan.weights)


def test_files_of_version_2_are_what_they_say(tmp_path):
    plan, path = random_plan(), tmp_path / "new.safetensors"
    write(path, remembered(plan), "2")
    assert mls.Plan.load(path) == plan
    plan.save(path)
    assert load_file(path).keys() == remembered(plan).keys()


@pytest.mark.parametrize("version", ["4", "", "two"])
def test_files_of_other_versions_are_refused(tmp_path, version):
    write(tmp_path / "plan", own(random_plan()), version)
    with pytest.raises(ValueError, match=r"this release reads versions \(1, 2, 3\)"):
        mls.Plan.load(tmp_path / "plan")


def test_a_damaged_recall_is_refused(tmp_path):
    plan, path = random_plan(), tmp_path / "plan.safetensors"
    whole = remembered(plan)
    plan.save(path)
    coefficients = whole["recall_coefficients"].numpy().tobytes()
    content = path.read_bytes()
    at = content.index(coefficients)
    for damage in (0, len(coefficients) - 1):
        path.write_bytes(content[: at + damage] + bytes([content[at + damage] ^ 1]) + content[at + damage + 1 :])
        with pytest.raises(ValueError, match="checksum does not fit"):
            mls.Plan.load(path)
    for name in ("recall_places", "recall_coefficients"):
        write(path, {key: value for key, value in whole.items() if key != name}, "2")
        with pytest.raises(ValueError, match="is not a plan"):
            mls.Plan.load(path)
    write(path, whole | {"recall_coefficients": whole["recall_coefficients"].float()}, "2")
    with pytest.raises(ValueError, match="of another dtype"):
        mls.Plan.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recall_places": torch.tensor([[1, 0, 1]])}, "must recall a level of an earlier step"),
        ({"recall_places": torch.tensor([[9, 0, 1]])}, '"recall" names step 9'),
        ({"recall_places": torch.tensor([[1, 0]])}, "does not hold a recall"),
        ({"recall_places": torch.tensor([[1, 0, 0], [2, 0, 0]])}, "does not hold a recall"),
        ({"recall_places": torch.tensor([1, 0, 0])}, "does not hold a recall"),
        ({"recall_coefficients": torch.tensor([[1.0]], dtype=torch.float64)}, "does not hold a recall"),
        ({"recall_coefficients": torch.tensor([torch.nan], dtype=torch.float64)}, "finite coefficients"),
    ],
)
def test_a_recall_that_is_none_is_refused_even_with_the_right_checksum(tmp_path, change, message):
    whole = {"recall_places": torch.tensor([[1, 0, 0]]), "recall_coefficients": torch.ones(1, dtype=torch.float64)}
    write(tmp_path / "plan", own(random_plan()) | whole | change, "2")
    with pytest.raises(ValueError, match=message):
        mls.Plan.load(tmp_path / "plan")
