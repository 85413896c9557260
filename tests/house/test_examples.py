"""The example scripts on tiny networks with the interfaces of EDM2 and of SiT, and two pages of the documentation."""

import importlib.util
import json
import re
import sys
import types
from itertools import pairwise

import pytest
import torch
from places import ROOT
from safetensors.torch import load_file, save_file
from torch import nn

import multilevel_sde as mls
from multilevel_diffusion.networks.store import shipped_ladder


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


edm2_ladder, sit_ladder = script("edm2_ladder"), script("sit_ladder")


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """Make a folder that passes for a checkout, and put modules in the place of what would be imported from it."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def make(**modules):
        for name, module in modules.items():
            name = name.replace("__", ".")
            (tmp_path / f"{name}.py").touch()
            monkeypatch.setitem(sys.modules, name, module)
        return str(tmp_path)

    yield make
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# -- EDM2 --------------------------------------------------------------------------------------------------------------


class Precond(nn.Module):
    """D(x; sigma, labels) of data N(class / 10, 0.25), wrong by a convolution of `width` channels."""

    def __init__(self, width, error, resolution=4):
        super().__init__()
        self.img_channels, self.img_resolution, self.label_dim = 3, resolution, 5
        with torch.random.fork_rng():
            torch.manual_seed(width)
            self.inner = nn.Conv2d(3, width, 3, padding=1)
            self.outer = nn.Conv2d(width, 3, 3, padding=1)
        self.error, self.calls = error, 0

    def forward(self, x, sigma, class_labels=None):
        self.calls += 1
        mean = 0 if class_labels is None else (class_labels.argmax(1) / 10).reshape(-1, 1, 1, 1)
        sigma = sigma.reshape(-1, 1, 1, 1)
        return mean + 0.25 / (0.25 + sigma**2) * (x - mean) + self.error * self.outer(torch.tanh(self.inner(x)))


class FakeEDM2(types.ModuleType):
    """What the script uses of EDM2's `generate_images.py`: its signatures, its presets, Heun's method, labels."""

    def __init__(self):
        super().__init__("generate_images")
        self.files = {"xs.pkl": Precond(2, 0.1), "m.pkl": Precond(8, 0.05), "xxl.pkl": Precond(32, 0.0)}
        self.config_presets = {f"tiny-{name[:-4]}": {"net": name} for name in self.files}
        self.latents, self.loaded = {}, []

    @staticmethod
    def edm_sampler(net, noise, labels=None, gnet=None, num_steps=32, randn_like=torch.randn_like):
        t_steps = torch.cat([torch.linspace(20.0**0.2, 0.02**0.2, num_steps) ** 5, torch.zeros(1)])
        x = noise * t_steps[0]
        for t, s in pairwise(t_steps):
            d = (x - net(x, t, labels)) / t
            ahead = x + (s - t) * d
            x = ahead if s == 0 else x + (s - t) * (d + (ahead - net(ahead, s, labels)) / s) / 2
        return x

    def generate_images(
        self, net, gnet=None, encoder=None, outdir=None, seeds=range(16, 24), class_idx=None, max_batch_size=4,
        verbose=True, device=None, sampler_fn=None, **sampler_kwargs,
    ):  # fmt: skip
        if isinstance(net, str):
            self.loaded.append(net)
            net = self.files[net]
        torch.distributed.barrier()
        for first in range(0, len(seeds), max_batch_size):
            part = seeds[first : first + max_batch_size]
            noise = torch.stack([torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(s)) for s in part])
            index = torch.tensor([s % 5 if class_idx is None else class_idx for s in part])
            labels = torch.eye(net.label_dim)[index]
            sampler = sampler_fn or self.edm_sampler
            x = sampler(net=net, noise=noise, labels=labels, gnet=net, randn_like=torch.randn_like, **sampler_kwargs)
            self.latents.update(zip(part, x, strict=True))
            yield x


@pytest.fixture
def edm2(checkout):
    fake, package, distributed = FakeEDM2(), types.ModuleType("torch_utils"), types.ModuleType("distributed")
    distributed.init = lambda: None
    fake.folder = checkout(generate_images=fake, torch_utils=package, torch_utils__distributed=distributed)
    return fake


@torch.no_grad()
def run_edm2(fake, *words):
    arguments = ["--edm2-repo", fake.folder, "--preset", "tiny-{size}", "--sizes", "xs", "m", "xxl"]
    return edm2_ladder.main([*arguments, "--device", "cpu", "--steps", "12", *words])


@torch.no_grad()
def test_edm2_at_full_budget_is_the_largest_network_bit_for_bit(edm2, capsys):
    assert run_edm2(edm2, "--budget-fraction", "1") == 0
    ours, edm2.latents = edm2.latents, {}
    list(edm2.generate_images("xxl.pkl", seeds=range(8), num_steps=12))
    assert set(ours) == set(edm2.latents) == set(range(8))
    assert all(torch.equal(ours[seed], edm2.latents[seed]) for seed in ours)
    assert "evaluations [0, 0, 46], 100.0% of the top level's cost" in capsys.readouterr().out


def test_edm2_loads_every_network_once_and_meets_the_budget(edm2, capsys):
    assert run_edm2(edm2, "--budget-fraction", "0.4", "--seeds", "0", "40") == 0
    assert edm2.loaded == ["xs.pkl", "m.pkl", "xxl.pkl"]
    calls = [net.calls for net in edm2.files.values()]
    total = capsys.readouterr().out.splitlines()[-1]
    assert f"total of 10: 230 calls, evaluations {calls}" in total
    cost = sum(count * gflops for count, gflops in zip(calls, [46.0, 181.0, 552.0], strict=True))
    assert cost / (230 * 552.0) == pytest.approx(0.4, rel=0.03)


def test_edm2_passes_labels_to_every_level(edm2):
    """All levels know data around class / 10 exactly, so the images are: mean within 4 standard errors."""
    for net in edm2.files.values():
        net.error = 0.0
    run_edm2(edm2, "--budget-fraction", "0.4", "--class", "4", "--seeds", "0", "200")
    images = torch.stack(list(edm2.latents.values()))
    assert abs(images.mean() - 0.4) < 4 * 0.5 / images.numel() ** 0.5


def test_edm2_costs_can_be_counted(edm2):
    model = edm2_ladder.multilevel({"tiny": Precond(2, 0.1), "large": Precond(8, 0.0)}, count=True, budget_fraction=0.5)
    assert model.ladder.costs == (2 * 2 * 3 * 9 * 16 * 2, 2 * 2 * 3 * 9 * 16 * 8)  # 2 operations, 2 convolutions
    assert (model.img_resolution, model.label_dim) == (4, 5)


def test_edm2_refuses_what_does_not_fit(edm2, capsys):
    with pytest.raises(ValueError, match="\"networks\" have img_resolution 8 at 'xs' and 4 at the top"):
        edm2_ladder.multilevel({"xs": Precond(2, 0.1, resolution=8), "m": Precond(8, 0.0)}, budget_fraction=0.5)
    with pytest.raises(ValueError, match="\"networks\" has the size 'huge'"):
        edm2_ladder.multilevel({"xs": Precond(2, 0.1), "huge": Precond(8, 0.0)}, budget_fraction=0.5)
    with pytest.raises(ValueError, match="which has no generate_images"):
        edm2_ladder.main(["--edm2-repo", str(ROOT / "docs"), "--device", "cpu"])
    with pytest.raises(SystemExit):
        run_edm2(edm2, "--nets", "xs.pkl")
    assert '"--nets" has 1 files for 3 sizes' in capsys.readouterr().err


# -- SiT ---------------------------------------------------------------------------------------------------------------


class SiT(nn.Module):
    """The call and the parameter names of SiT; velocity x_0 - eps of data N(label / 4, 1/4), noise at t = 0.

    `bend` puts its parameters, hence an error that depends on them, into the velocity.
    """

    def __init__(self, width, bend, input_size=4, num_classes=1000, learn_sigma=True):
        super().__init__()
        out = 8 if learn_sigma else 4
        self.pos_embed = nn.Parameter(torch.zeros(1, (input_size // 2) ** 2, width))
        self.x_embedder, self.y_embedder, self.final_layer = nn.Module(), nn.Module(), nn.Module()
        self.x_embedder.proj = nn.Conv2d(4, width, 2, 2)
        self.y_embedder.embedding_table = nn.Embedding(num_classes + 1, width)
        self.y_embedder.num_classes = num_classes
        self.final_layer.linear = nn.Linear(width, 4 * out)
        self.bend, self.calls = bend, 0

    def forward(self, x, t, y):
        assert t.shape == y.shape == x.shape[:1]
        self.calls += 1
        t, mean = t.reshape(-1, 1, 1, 1), (y / 4).reshape(-1, 1, 1, 1)
        slope = (t / 4 - (1 - t)) / (t**2 / 4 + (1 - t) ** 2)
        tokens = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        return mean + slope * (x - t * mean) + self.bend * self.final_layer.linear(tokens).mean()

    def forward_with_cfg(self, x, t, y, cfg_scale):
        half = x[: len(x) // 2]
        given, free = self.forward(torch.cat([half, half]), t, y).chunk(2)
        return torch.cat([free + cfg_scale * (given - free)] * 2)


MODELS = {
    "SiT-S/2": lambda **kind: SiT(8, 1.0, **kind),
    "SiT-B/2": lambda **kind: SiT(16, 1.0, **kind),
    "SiT-XL/2": lambda **kind: SiT(32, 1.0, **kind),
}
KIND = {"input_size": 4, "num_classes": 3, "learn_sigma": False}


@torch.no_grad()
def test_sit_runs_from_noise_to_its_data():
    """The exact flow of N(label / 4, 1/4) takes the noise z to label / 4 + z / 2; Euler's error is of order 1."""
    labels, seeds, errors = torch.tensor([0, 3, 4]), [5, 6, 7], []
    exact = labels.reshape(-1, 1, 1, 1) / 4 + mls.seeded_normal(seeds, (4, 4, 4)) / 2
    for steps in (100, 200):
        y = sit_ladder.sample({"XL": SiT(8, 0.0)}, labels, seeds, steps, steps, shape=(4, 4, 4)).y
        errors.append(float((y - exact).abs().max()))
    assert errors[1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)


@torch.no_grad()
def test_sit_guidance_is_linear_in_the_estimates():
    model, labels, x, t = SiT(8, 0.0, num_classes=3), torch.tensor([0, 2]), torch.ones(2, 4, 4, 4), torch.tensor(0.4)
    given = sit_ladder.level(model, labels)(x, t)
    free = sit_ladder.level(model, torch.tensor([3, 3]))(x, t)
    torch.testing.assert_close(sit_ladder.level(model, labels, 2.5)(x, t), free + 2.5 * (given - free))


@pytest.fixture
def weights(tmp_path):
    paths = {}
    for n, size in enumerate(["S", "B", "XL"]):
        with torch.random.fork_rng():
            torch.manual_seed(n)
            model = MODELS[f"SiT-{size}/2"](**{**KIND, "learn_sigma": size == "S"})
        paths[size] = str(tmp_path / f"{size}.safetensors")
        save_file(model.state_dict(), paths[size])
    return paths


@torch.no_grad()
def test_sit_weights_bring_their_shape(weights):
    model = sit_ladder.load(MODELS, "S", weights["S"], "cpu")
    assert (model.y_embedder.num_classes, model.pos_embed.shape[1], model.final_layer.linear.out_features) == (3, 4, 32)
    assert sit_ladder.load(MODELS, "B", weights["B"], "cpu").final_layer.linear.out_features == 16
    assert torch.equal(model.x_embedder.proj.weight, load_file(weights["S"])["x_embedder.proj.weight"])
    assert not model.training
    with pytest.raises(ValueError, match="does not hold a SiT-B/2"):
        sit_ladder.load(MODELS, "B", weights["S"], "cpu")
    with pytest.raises(ValueError, match="which is no file"):
        sit_ladder.load(MODELS, "B", weights["S"] + "x", "cpu")


@torch.no_grad()
def test_sit_command_samples_within_its_budget(weights, checkout, tmp_path, capsys):
    module = types.ModuleType("models")
    module.SiT_models = MODELS
    words = ["--sit-repo", checkout(models=module), "--weights", *(f"{size}={path}" for size, path in weights.items())]
    words += ["--labels", "1", "2", "--steps", "40", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert sit_ladder.main([*words, "--budget", "12"]) == 0
    evaluations = [int(n) for n in re.findall(r"\d+", capsys.readouterr().out.split(";")[0])]
    assert evaluations[0] == 40
    cost = sum(n * sit_ladder.GMACS[size] for n, size in zip(evaluations, weights, strict=True))
    assert cost / sit_ladder.GMACS["XL"] == pytest.approx(12, abs=1.2)  # whole evaluations of each level

    assert sit_ladder.main([*words, "--budget", "40"]) == 0
    top = {"XL": sit_ladder.load(MODELS, "XL", weights["XL"], "cpu")}
    alone = sit_ladder.sample(top, torch.tensor([1, 2]), [0, 1], 40, 40, guidance=4.0, shape=(4, 4, 4))
    assert torch.equal(load_file(tmp_path / "out" / "latents.safetensors")["latents"], alone.y)


def test_sit_refuses_bad_input(weights, tmp_path, capsys):
    with pytest.raises(ValueError, match='"--sit-repo"'):
        sit_ladder.main(["--sit-repo", str(tmp_path), "--weights", f"S={weights['S']}"])
    with pytest.raises(SystemExit):
        sit_ladder.main(["--sit-repo", str(tmp_path), "--weights", weights["S"]])
    assert "expected SIZE=FILE" in capsys.readouterr().err
    with pytest.raises(ValueError, match='"budget" is 9, more than'):
        sit_ladder.sample({"XL": SiT(8, 0.0)}, torch.tensor([0]), [0], 8, 9)


# -- documentation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["edm", "training"])
def test_the_examples_of_a_page_run_and_print_what_it_says(name, capsys):
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for code, output in re.findall(r"```python\n((?:(?!```).)*)```(?:(?!```).)*```text\n(.*?)```", page, re.DOTALL):
        exec(code, names)
        assert capsys.readouterr().out == output


@pytest.mark.parametrize("name", ["digits", "deadleaves32"])
def test_the_table_of_a_shipped_ladder_is_its_record(name):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.search(rf"\| {name}, .*?\n\n", page, re.DOTALL).group().splitlines()[2:-1]
    levels = json.loads((shipped_ladder(name) / "ladder.json").read_text())["levels"]
    for row, level in zip(rows, levels, strict=True):
        cells = [cell.strip().replace(",", "") for cell in row.strip("|").split("|")]
        assert int(cells[1]) == level["parameters"]
        assert float(cells[2]) == pytest.approx(level["flops"], rel=5e-3)
        assert float(cells[3]) == pytest.approx(level["error"]["loss"], abs=1e-4)
        if cells[4]:
            assert float(cells[4]) == pytest.approx(level["error"]["rms_to_top"], abs=1e-3)
