"""Training: the optimum it finds, the averages it keeps, and that a killed run goes on as if it had not been."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from multilevel_diffusion.networks.data import Digits
from multilevel_diffusion.networks.image_folder import ImageFolder
from multilevel_diffusion.networks.training import train, train_ladder
from multilevel_diffusion.networks.training_order import run_folders, seconds_left
from multilevel_diffusion.networks.training_state import Run, TrainSettings
from multilevel_diffusion.networks.unet import UNetConfig
from multilevel_diffusion.process.schedules import CosineSchedule, EDMSchedule

TINY = UNetConfig(base_dim=4, bottom_depth=1, mid_depth=0, levels=1, image_size=8, channels=1, time_dim=8)
SHORT = TrainSettings(steps=40, batch_size=8, warmup=5, log_every=5, checkpoint_every=10)
# What the killed process runs; it waits after each batch, so that it is killed before it is done.
SCRIPT = """
import sys, time, torch
from test_diffusion_train import SHORT, TINY
from multilevel_diffusion.networks.data import Digits
from multilevel_diffusion.process.schedules import CosineSchedule
from multilevel_diffusion.networks.training import train

class SlowDigits(Digits):
    def batch(self, n, generator):
        time.sleep(0.1)
        return super().batch(n, generator)

torch.set_num_threads(1)
train(TINY, SlowDigits(), CosineSchedule(), sys.argv[1], SHORT, progress=False)
"""


class Constant:
    """One image, over and over."""

    image_shape = (1, 8, 8)
    image = torch.linspace(-0.8, 0.8, 64).reshape(1, 1, 8, 8)

    def batch(self, n, generator):
        return self.image.expand(n, -1, -1, -1)

    def held_out(self, n):
        return self.image[:n]

    def describe(self):
        return {"data": "constant"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_of(settings=SHORT, schedule=None) -> Run:
    return Run(TINY, Digits(), schedule or CosineSchedule(), settings, torch.device("cpu"))


def assert_same_run(a, b):
    assert torch.equal(a.losses, b.losses)
    for (name, left), right in zip(a.network.state_dict().items(), b.network.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def test_killed_run_resumes_to_the_same_numbers(tmp_path):
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), str(here.parent / "adapters")])
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(checkpoint.parent)], env={**os.environ, "PYTHONPATH": paths}
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the child finished, or failed, before it was killed"
    assert checkpoint.exists()
    half = run_of()
    half.restore(checkpoint)
    assert 10 <= half.step < SHORT.steps
    resumed = train(TINY, Digits(), CosineSchedule(), checkpoint.parent, SHORT, progress=False)
    straight = train(TINY, Digits(), CosineSchedule(), tmp_path / "straight", SHORT, progress=False)
    assert_same_run(resumed, straight)
    assert (checkpoint.parent / "log.csv").read_text() == (tmp_path / "straight" / "log.csv").read_text()


def test_checkpoint_holds_the_whole_state(tmp_path):
    """Stopped between two rows of the loss curve, the window of the row survives as well."""
    straight, stopped = run_of(), run_of()
    for _ in range(13):
        straight.advance()
        stopped.advance()
    stopped.save(tmp_path / "checkpoint.safetensors")
    resumed = run_of()
    resumed.restore(tmp_path / "checkpoint.safetensors")
    for _ in range(9):
        straight.advance()
        resumed.advance()
    assert resumed.losses == straight.losses
    assert len(resumed.losses) == 4
    for name, value in straight.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_finished_run_is_reloaded(tmp_path):
    first = train(TINY, Digits(), CosineSchedule(), tmp_path, SHORT, progress=False)
    again = train(TINY, Digits(), CosineSchedule(), tmp_path, SHORT, progress=False)
    assert_same_run(first, again)
    assert again.seconds == first.seconds


def test_other_runs_are_refused(tmp_path):
    train(TINY, Digits(), CosineSchedule(), tmp_path, SHORT, progress=False)
    for arguments, words in [
        ((TINY, Digits(), CosineSchedule(), tmp_path, replace(SHORT, seed=1)), "settings: seed 0 against 1"),
        ((TINY, Digits(shift=False), CosineSchedule(), tmp_path, SHORT), "source: shift True against False"),
        ((TINY, Digits(), CosineSchedule(offset=0.01), tmp_path, SHORT), "schedule: offset 0.008 against 0.01"),
        ((replace(TINY, base_dim=8), Digits(), CosineSchedule(), tmp_path, SHORT), "config: base_dim 4 against 8"),
    ]:
        with pytest.raises(ValueError, match=words):
            train(*arguments, progress=False)


def test_a_run_goes_on_when_it_is_told_to_be_longer(tmp_path):
    train(TINY, Digits(), CosineSchedule(), tmp_path, SHORT, progress=False)
    longer = replace(SHORT, steps=60)
    run = run_of(longer)
    run.restore(tmp_path / "checkpoint.safetensors")
    assert (run.step, run.lengthened) == (40, [40])
    for _ in range(20):
        run.advance()
    trained = train(TINY, Digits(), CosineSchedule(), tmp_path, longer, progress=False)
    assert trained.losses.tolist() == run.losses
    assert trained.lengthened == (40,)
    for left, right in zip(trained.network.parameters(), run.averaged().parameters(), strict=True):
        assert torch.equal(left, right)
    assert train(TINY, Digits(), CosineSchedule(), tmp_path, longer, progress=False).lengthened == (40,)
    with pytest.raises(ValueError, match=r'"steps" is 59, but the run in .* has done 60; give as many or more'):
        train(TINY, Digits(), CosineSchedule(), tmp_path, replace(SHORT, steps=59), progress=False)


def test_the_time_that_is_left_is_estimated_and_nothing_is_written(tmp_path, monkeypatch):
    """By a clock on which the first step of a run takes a minute and each other one two seconds."""
    now, advance, begun = [0.0], Run.advance, set()

    def slowly(run):
        now[0] += 2.0 if id(run) in begun else 60.0
        begun.add(id(run))
        kept.append(run)  # so that no other run gets its id
        return advance(run)

    kept = []
    monkeypatch.setattr(Run, "advance", slowly)
    monkeypatch.setattr("multilevel_diffusion.networks.training_order.time.perf_counter", lambda: now[0])
    settings = [replace(SHORT, steps=4000), replace(SHORT, steps=8000)]
    assert seconds_left([TINY, TINY], Digits(), CosineSchedule(), tmp_path, settings) == [8000.0, 16000.0]
    assert not list(tmp_path.iterdir())
    train(TINY, Digits(), CosineSchedule(), run_folders(tmp_path, 1)[0], SHORT, progress=False)
    assert seconds_left([TINY], Digits(), CosineSchedule(), tmp_path, [SHORT]) == [0.0]


def test_a_folder_of_images_may_move(tmp_path):
    """Checkpoints of before did not know where it was, nor the share of null labels."""
    for name in ("before", "after"):
        (tmp_path / name / "photos").mkdir(parents=True)
        for index in range(3):
            Image.new("L", (8, 8), 40 * index).save(tmp_path / name / "photos" / f"{index}.png")
    config, folder = replace(TINY, channels=3), tmp_path / "run"
    train(config, ImageFolder(tmp_path / "before" / "photos", 8), CosineSchedule(), folder, SHORT, progress=False)
    with safe_open(folder / "checkpoint.safetensors", "pt") as file:
        header = json.loads(file.metadata()["run"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert "path" not in header["source"]
    assert "classes" not in header["config"]
    del header["settings"]["null_share"], header["lengthened"]
    save_file(tensors, folder / "checkpoint.safetensors", {"run": json.dumps(header)})
    again = ImageFolder(tmp_path / "after" / "photos", 8)
    assert train(config, again, CosineSchedule(), folder, SHORT, progress=False).lengthened == ()


def test_the_noise_of_one_image_is_learned(tmp_path):
    """If all images are x_0 the best estimate (x - alpha x_0) / sigma is exact; half of it needs no learning."""
    settings = TrainSettings(steps=200, batch_size=32, learning_rate=1e-2, warmup=20, ema_decay=0.9)
    losses = train(replace(TINY, base_dim=8), Constant(), CosineSchedule(), tmp_path, settings, progress=False).losses
    assert losses[-5:].mean() < 0.15 * losses[0]


def test_global_random_state_is_left_alone(tmp_path):
    state = torch.get_rng_state()
    train(TINY, Digits(), CosineSchedule(), tmp_path, replace(SHORT, steps=5), progress=False)
    assert torch.equal(state, torch.get_rng_state())


def test_times_are_evenly_spaced_and_uniform():
    seen = []

    class Recorder(CosineSchedule):
        def perturb(self, x0, noise, t):
            seen.append(t)
            return super().perturb(x0, noise, t)

    run = run_of(replace(SHORT, steps=300, batch_size=4), Recorder())
    for _ in range(300):
        run.advance()
    low = run.schedule.t_min
    times = torch.stack(seen)
    gaps = times.sort(dim=1).values.diff(dim=1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, (1 - low) / 4), rtol=0, atol=1e-5)
    assert times.min() >= low
    assert times.max() <= 1
    # Each time is uniform: four standard deviations of a mean of 300.
    assert abs(float(times[:, 1].mean()) - (1 + low) / 2) < 4 / math.sqrt(12 * 300)


def test_average_follows_its_recursion():
    run = run_of(replace(SHORT, ema_decay=0.5))
    expected = {name: value.clone() for name, value in run.average.items()}
    for step in range(1, 16):
        run.advance()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in run.parameters.items():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach()
    for name, value in expected.items():
        torch.testing.assert_close(run.average[name], value)


def test_learning_rate_warms_up_and_decays():
    settings = TrainSettings(steps=1000, learning_rate=3.0, warmup=99)
    rates = [settings.learning_rate_at(step) for step in range(1001)]
    assert rates[0] == pytest.approx(0.03)
    assert rates[49] == pytest.approx(1.5 * 0.5 * (1 + math.cos(0.049 * math.pi)))
    assert rates[500] == pytest.approx(1.5)
    assert rates[1000] == pytest.approx(0.0, abs=1e-12)


def test_outputs_of_a_run(tmp_path):
    trained = train(TINY, Digits(), CosineSchedule(), tmp_path, SHORT, progress=False)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0] == "step,loss,learning_rate"
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(5, 41, 5))
    assert [float(row.split(",")[1]) for row in rows[1:]] == pytest.approx(trained.losses.tolist(), rel=1e-6)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not trained.network.training
    assert not any(parameter.requires_grad for parameter in trained.network.parameters())
    assert not list(tmp_path.glob(".*"))


def test_divergence_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r'the loss became .* lower "learning_rate"'):
        train(TINY, Digits(), CosineSchedule(), tmp_path, replace(SHORT, learning_rate=1e30), progress=False)


def test_ladder_records_what_was_done(tmp_path):
    configs, settings = [TINY, replace(TINY, base_dim=8)], [SHORT, replace(SHORT, seed=1)]
    ladder = train_ladder(configs, Digits(), CosineSchedule(), tmp_path, settings, progress=False)
    assert [network.config for network in ladder.networks] == configs
    assert [level["training"]["settings"]["seed"] for level in ladder.record["levels"]] == [0, 1]
    assert ladder.record["data"] == {"data": "digits", "shift": True}
    assert ladder.record["levels"][0]["error"]["rms_to_top"] > 0
    assert sorted(path.name for path in (tmp_path / "training").iterdir()) == ["level_1", "level_2"]
    with pytest.raises(ValueError, match='"settings" has 1 entries for 2 networks'):
        train_ladder(configs, Digits(), CosineSchedule(), tmp_path, settings[:1])


def test_a_ladder_begun_with_folders_from_zero_goes_on_in_them(tmp_path, monkeypatch):
    """The second network's run was `level_1` then, which is where the first one's is now."""
    settings = [replace(SHORT, steps=10, seed=seed) for seed in (0, 1)]
    configs = [TINY, replace(TINY, bottom_depth=2)]
    for level in range(2):
        folder = tmp_path / "training" / f"level_{level}"
        train(configs[level], Digits(), CosineSchedule(), folder, settings[level], progress=False)
    monkeypatch.setattr(Run, "advance", lambda self: pytest.fail("it trains again"))
    ladder = train_ladder(configs, Digits(), CosineSchedule(), tmp_path, settings, progress=False)
    assert [network.config for network in ladder.networks] == configs
    assert sorted(path.name for path in (tmp_path / "training").iterdir()) == ["level_0", "level_1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, '"steps" is 0'),
        ({"batch_size": 1.5}, '"batch_size" is 1.5'),
        ({"learning_rate": math.nan}, '"learning_rate" is nan'),
        ({"clip_norm": 0}, '"clip_norm" is 0'),
        ({"warmup": -1}, '"warmup" is -1'),
        ({"ema_decay": 1.0}, '"ema_decay" is 1.0'),
        ({"checkpoint_every": 12}, '"checkpoint_every" is 12'),
        ({"null_share": 1.5}, '"null_share" is 1.5'),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SHORT, **change)


def test_mismatches_are_refused(tmp_path):
    with pytest.raises(ValueError, match='"source" gives images of shape'):
        train(replace(TINY, image_size=16), Digits(), CosineSchedule(), tmp_path, SHORT)
    with pytest.raises(ValueError, match='"schedule" ends at time 80'):
        train(TINY, Digits(), EDMSchedule(), tmp_path, SHORT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_run_resumes(tmp_path):
    half = Run(TINY, Digits(), CosineSchedule(), SHORT, torch.device("cuda"))
    for _ in range(10):
        half.advance()
    half.save(tmp_path / "checkpoint.safetensors")
    trained = train(TINY, Digits(), CosineSchedule(), tmp_path, SHORT, device="cuda", progress=False)
    assert torch.isfinite(trained.losses).all()
    assert next(trained.network.parameters()).device.type == "cpu"
