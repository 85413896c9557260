"""Attacks on files: plans, pilots, learned schedules and ladder folders with bytes flipped, cut, inserted, repeated."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import tempfile
from pathlib import Path

import torch
from hypothesis import strategies as st

import multilevel_sde as mls
from fuzz.harness import Target, nothing_executed
from multilevel_diffusion.networks.store import load_ladder, save_ladder
from multilevel_diffusion.networks.unet import UNet, UNetConfig
from multilevel_diffusion.process.schedules import CosineSchedule


class _Command:
    """Unpickling it would write a file."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


_PICKLE = pickle.dumps(_Command())


@st.composite
def _mutations(draw):
    """One to three changes; places are parts of the file, so that they fit files of any length."""
    place = st.one_of(st.floats(0.0, 1.0), st.integers(0, 600))  # headers are at the beginning
    kind = st.sampled_from(["flip", "flip", "set", "cut", "insert", "repeat", "drop", "digit"])
    return draw(st.lists(st.tuples(kind, place, st.integers(0, 255), st.integers(1, 40)), min_size=1, max_size=3))


def _mutated(content: bytes, mutations) -> bytes:
    for kind, place, value, length in mutations:
        if content:
            at = min(len(content) - 1, int(place * len(content)) if isinstance(place, float) else place)
            content = _changed(content, kind, at, value, length)
    return content


def _changed(content: bytes, kind: str, at: int, value: int, length: int) -> bytes:
    head, tail = content[:at], content[at:]
    match kind:
        case "flip":
            return head + bytes([tail[0] ^ (1 << value % 8)]) + tail[1:]
        case "set":
            return head + bytes([value]) + tail[1:]
        case "cut":
            return head
        case "insert":
            return head + bytes([value]) * length + tail
        case "repeat":
            return head + tail[:length] + tail
        case "drop":
            return head + tail[length:]
    return _other_digit(content, at, value)


def _other_digit(content: bytes, at: int, value: int) -> bytes:
    """Change the next decimal digit: still readable, with another meaning."""
    for place in range(at, min(len(content), at + 200)):
        if chr(content[place]).isdecimal():
            return content[:place] + str((content[place] + 1 + value % 9) % 10).encode() + content[place + 1 :]
    return content


_inputs = st.one_of(_mutations(), _mutations(), _mutations(), st.just(_PICKLE), st.binary(max_size=60))


class _File:
    """A file that is mutated, read and held against what it meant."""

    def __init__(self, save, load, meaning):
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz")
        self._path = Path(self._folder.name) / "file.safetensors"
        save(self._path)
        self._whole, self._load, self._meaning = self._path.read_bytes(), load, meaning
        self._meant = meaning(load(self._path))

    def __call__(self, value) -> str:
        content = value if isinstance(value, bytes) else _mutated(self._whole, value)
        self._path.write_bytes(content)
        with nothing_executed():
            loaded = self._load(self._path)
        assert self._meaning(loaded) == self._meant, "a damaged file loaded with another meaning"
        return "accepted" if content == self._whole else "loaded as it was"


def _plan_meaning(loaded):
    plan, times = loaded
    recall = None if plan.recall is None else plan.recall.entries
    return plan.hits.tolist(), plan.weights.tolist(), plan.truncated, recall, times.tolist()


def _pilot_meaning(pilot):
    return {
        name: value.tolist()
        if isinstance(value, torch.Tensor)
        else {key: getattr(entry, "tolist", lambda entry=entry: entry)() for key, entry in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in vars(pilot).items()
        if not name.startswith("_")
    }


def _plan_file():
    p = torch.tensor([1.0, 0.6, 0.2]).expand(6, 3)
    plan = mls.draw_plan(p, generator=torch.Generator().manual_seed(3))
    times = torch.linspace(0.0, 1.0, 7)
    return _File(lambda path: mls.hold(plan, times).save(path, times), mls.Plan.load_with_times, _plan_meaning)


def _pilot_file():
    problem = mls.problems.scaling_law(3.0, levels=3)
    steps = functools.partial(mls.adams_bashforth_weights, order=2)
    pilot = mls.pilot(problem.ladder, problem.y0(4), problem.times(16), candidates=8, multistep=steps)
    return _File(pilot.save, mls.Pilot.load, _pilot_meaning)


def _schedule_file():
    schedule = mls.LearnedSchedule((0.1, 1 / 3), (2.0, -1.0), 0.05, 1e-3, ((0.5, 10.0), (0.25, 12.0)))
    return _File(schedule.save, mls.LearnedSchedule.load, lambda loaded: loaded)


class _Folder:
    """A ladder of two small networks, one of whose files is mutated at a time."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz")
        self._root = Path(self._folder.name) / "ladder"
        config = {"bottom_depth": 1, "mid_depth": 0, "levels": 1, "image_size": 8, "channels": 1, "time_dim": 4}
        networks = [UNet(UNetConfig(base_dim=width, **config)) for width in (2, 4)]
        save_ladder(self._root, networks, CosineSchedule(), batch=1)
        self._meant = self._meaning(load_ladder(self._root))
        self._files = sorted(path for path in self._root.rglob("*") if path.is_file())
        self._whole = {path: path.read_bytes() for path in self._files}

    @staticmethod
    def _meaning(ladder):
        weights = hashlib.sha256()
        for network in ladder.networks:
            for name, value in network.state_dict().items():
                weights.update(name.encode() + value.numpy().tobytes())
        return weights.hexdigest(), ladder.ladder.costs, ladder.schedule, ladder.clip, ladder.record["levels"]

    def __call__(self, value) -> str:
        which, change = value
        path = self._files[which % len(self._files)]
        whole = self._whole[path]
        content = change if isinstance(change, bytes) else _mutated(whole, change)
        try:
            if content == b"":
                path.unlink()
            else:
                path.write_bytes(content)
            with nothing_executed():
                loaded = load_ladder(self._root)
            assert self._meaning(loaded) == self._meant, f"{path.name} was damaged and loaded with another meaning"
        finally:
            path.write_bytes(whole)
        return "accepted" if content == whole else "loaded as it was"


def _lazily(make):
    """An attack whose file is made at the first try."""
    made = functools.cache(make)
    return lambda value: made()(value)


TARGETS = [
    Target("plan files", _inputs, _lazily(_plan_file), 3.0),
    Target("pilot files", _inputs, _lazily(_pilot_file), 3.0),
    Target("schedule files", _inputs, _lazily(_schedule_file), 3.0),
    Target("ladder folders", st.tuples(st.integers(0, 4), _inputs), _lazily(_Folder), 0.4),
]
