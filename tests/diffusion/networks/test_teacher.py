"""Training with a teacher: who teaches whom, that it is the teacher's output that is learned, and resuming."""

from dataclasses import replace

import pytest
import torch

from multilevel_diffusion.networks.data import Digits
from multilevel_diffusion.networks.patches import PatchConfig
from multilevel_diffusion.networks.store import load_ladder
from multilevel_diffusion.networks.training import train, train_ladder
from multilevel_diffusion.networks.training_order import run_folders, seconds_left
from multilevel_diffusion.networks.training_state import Run, TrainSettings
from multilevel_diffusion.networks.unet import UNetConfig
from multilevel_diffusion.process.schedules import CosineSchedule

SMALL = PatchConfig(patch=2, width=8, inner=1, outer=0, image_size=8, channels=1, time_dim=8)
LARGE = UNetConfig(base_dim=8, bottom_depth=1, mid_depth=1, levels=1, image_size=8, channels=1, time_dim=8)
SHORT = TrainSettings(steps=40, batch_size=8, warmup=5, log_every=5, checkpoint_every=10)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def teacher(seed: int = 0):
    """A network that is far from the noise: trained by nobody, with weights that all do something."""
    generator, network = torch.Generator().manual_seed(seed), LARGE.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval().requires_grad_(False)


def run_of(settings=SHORT, teaches=None) -> Run:
    return Run(SMALL, Digits(), CosineSchedule(), settings, torch.device("cpu"), teaches)


def test_the_loss_is_the_distance_to_the_teacher():
    """A network that is its own teacher has no loss and stays what it is; with the noise it has."""
    alone = Run(LARGE, Digits(), CosineSchedule(), SHORT, torch.device("cpu"))
    taught = Run(LARGE, Digits(), CosineSchedule(), SHORT, torch.device("cpu"), alone.averaged())
    assert taught._loss().item() == 0
    assert alone._loss().item() > 0.1


def test_students_come_near_their_teacher_and_others_do_not(tmp_path):
    settings, above = replace(SHORT, steps=400, batch_size=32, learning_rate=1e-2), teacher()
    taught = train(SMALL, Digits(), CosineSchedule(), tmp_path / "taught", settings, teacher=above, progress=False)
    alone = train(SMALL, Digits(), CosineSchedule(), tmp_path / "alone", settings, progress=False)
    assert taught.losses[-8:].mean() < 0.5 * taught.losses[:8].mean()
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(64, 1, 8, 8, generator=generator), torch.rand(64, generator=generator)
    with torch.no_grad():
        near, far = ((run.network(x, t) - above(x, t)).square().mean() for run in (taught, alone))
    assert near < 0.5 * far


@pytest.mark.parametrize("change", [{}, {"velocity": True, "bfloat16": True}], ids=["noise", "velocity"])
def test_a_stopped_student_resumes_to_the_same_bits(tmp_path, change):
    settings, above = replace(SHORT, **change), teacher()
    straight, stopped = run_of(settings, above), run_of(settings, above)
    for _ in range(13):
        straight.advance()
        stopped.advance()
    stopped.save(tmp_path / "checkpoint.safetensors")
    resumed = run_of(settings, above)
    resumed.restore(tmp_path / "checkpoint.safetensors")
    for _ in range(9):
        straight.advance()
        resumed.advance()
    assert resumed.losses == straight.losses
    for name, value in straight.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_another_teacher_is_refused(tmp_path):
    train(SMALL, Digits(), CosineSchedule(), tmp_path, SHORT, teacher=teacher(), progress=False)
    for other in (teacher(seed=1), None):
        with pytest.raises(ValueError, match=r"holds another training run \(teacher .* against"):
            train(SMALL, Digits(), CosineSchedule(), tmp_path, SHORT, teacher=other, progress=False)


def test_a_ladder_is_trained_on_with_its_teacher(tmp_path):
    """A student goes on with the longer trained teacher, also where the run was killed between the two."""
    configs, longer = [SMALL, LARGE], [replace(SHORT, steps=60), replace(SHORT, steps=60, seed=1)]
    known = {"teacher": True, "progress": False}
    for folder in (tmp_path / "straight", tmp_path / "killed"):
        train_ladder(configs, Digits(), CosineSchedule(), folder, [SHORT, replace(SHORT, seed=1)], **known)
    left = [seconds_left(configs, Digits(), CosineSchedule(), tmp_path / "killed", longer, teacher=True)]
    train(LARGE, Digits(), CosineSchedule(), run_folders(tmp_path / "killed", 2)[1], longer[1], progress=False)
    left.append(seconds_left(configs, Digits(), CosineSchedule(), tmp_path / "killed", longer, teacher=True))
    assert [[seconds > 0 for seconds in one] for one in left] == [[True, True], [True, False]]
    straight, killed = (
        train_ladder(configs, Digits(), CosineSchedule(), tmp_path / name, longer, **known)
        for name in ("straight", "killed")
    )
    assert straight.digest == killed.digest
    assert [level["training"]["lengthened"] for level in killed.record["levels"]] == [[40], [40]]
    with pytest.raises(ValueError, match='"steps" of network 1 is 60, as before, but its teacher is trained on'):
        seconds_left(
            configs,
            Digits(),
            CosineSchedule(),
            tmp_path / "killed",
            [longer[0], replace(longer[1], steps=80)],
            teacher=True,
        )


def test_networks_in_another_order_are_refused_before_they_are_trained(tmp_path):
    with pytest.raises(ValueError, match="put the cheapest first"):
        train_ladder([LARGE, SMALL], Digits(), CosineSchedule(), tmp_path, [SHORT, SHORT], progress=False)
    assert not (tmp_path / "training").exists()


def test_each_level_of_a_ladder_learns_the_next_one(tmp_path):
    configs, settings = [SMALL, LARGE], [SHORT, replace(SHORT, seed=1)]
    left = seconds_left(configs, Digits(), CosineSchedule(), tmp_path, settings, teacher=True)
    assert min(left) > 0
    ladder = train_ladder(configs, Digits(), CosineSchedule(), tmp_path, settings, teacher=True, progress=False)
    small, large = run_folders(tmp_path, 2)
    alone = train(LARGE, Digits(), CosineSchedule(), tmp_path / "alone", settings[1], progress=False)
    for left, right in zip(ladder.networks[1].parameters(), alone.network.parameters(), strict=True):
        assert torch.equal(left, right)
    top = load_ladder(tmp_path).networks[1]
    taught = train(SMALL, Digits(), CosineSchedule(), tmp_path / "taught", SHORT, teacher=top, progress=False)
    for left, right in zip(ladder.networks[0].parameters(), taught.network.parameters(), strict=True):
        assert torch.equal(left, right)
    assert [level["training"].get("teacher") for level in ladder.record["levels"]] == ["the next level", None]
    assert seconds_left(configs, Digits(), CosineSchedule(), tmp_path, settings, teacher=True) == [0.0, 0.0]
    assert small.is_dir()
    assert large.is_dir()


def test_the_velocity_s_loss_is_that_of_the_noise_over_alpha():
    """One batch of one time: all errors have the same weight 1/alpha^2, at most 100."""
    for low, weight in ((0.5, None), (0.999, 100.0)):
        schedule = CosineSchedule(t_min=low)
        plain, weighed = (
            Run(SMALL, Digits(), schedule, replace(SHORT, batch_size=1, velocity=velocity), torch.device("cpu"))
            for velocity in (False, True)
        )
        phase = torch.rand((), generator=torch.Generator().manual_seed(SHORT.seed + 1))
        alpha = float(schedule.alpha(low + (1 - low) * phase))
        expected = weight or alpha**-2
        assert weighed._loss().item() == pytest.approx(expected * plain._loss().item(), rel=1e-5)
