"""Laws of files: plans replay bit for bit, damaged ones never load, a failed write leaves the old file."""

import json
import os
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

import multilevel_sde as mls
from multilevel_sde.files import checksum, is_sealed, seal, write_atomically


def some_plan(samples=None, truncated=False):
    table = torch.tensor([1.0, 0.6, 0.2]).expand(9, 3).clone()
    if truncated:
        table[2, 2] = 0.0
    generator = torch.Generator().manual_seed(3)
    return mls.draw_plan(table, mls.systematic, generator=generator, samples=samples, truncate=truncated)


def saved_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "plan.safetensors"
    some_plan(samples=2).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return saved_bytes(tmp_path_factory)


@pytest.mark.parametrize("samples", [None, 4])
@pytest.mark.parametrize("truncated", [False, True])
def test_a_saved_plan_replays_bit_for_bit(tmp_path, samples, truncated):
    plan = some_plan(samples, truncated)
    plan.save(tmp_path / "new folder" / "plan.safetensors")
    again = mls.Plan.load(tmp_path / "new folder" / "plan.safetensors")
    assert again == plan
    assert again.truncated == truncated
    ladder = mls.Ladder([torch.sin, torch.cos, torch.tanh], costs=[1.0, 2.0, 4.0])
    ladder = mls.Ladder([lambda x, t, f=f: f(x) for f in ladder.drifts], costs=ladder.costs)
    times, y0 = torch.linspace(0.0, 1.0, 10), torch.linspace(-1.0, 1.0, 4)
    options = {"diffusion": 0.3, "brownian": mls.BrownianPath(range(4))}
    first, second = (mls.solve(ladder, y0, times, p, **options) for p in (plan, again))
    assert torch.equal(first.y, second.y)
    assert first.status == second.status
    assert ("biased" in first.status) == truncated


def test_loading_keeps_the_sign_and_every_bit_of_the_weights(tmp_path):
    weights = torch.tensor([[1.0, 1 / 3, -0.0, 5e-324, -1.7e308]], dtype=torch.float64)
    mls.Plan(torch.ones(1, 5, dtype=torch.bool), weights).save(tmp_path / "plan")
    loaded = mls.Plan.load(str(tmp_path / "plan")).weights
    assert torch.equal(loaded.view(torch.int64), weights.view(torch.int64))


def test_a_truncated_file_never_loads(tmp_path, content):
    path = tmp_path / "plan"
    for length in [*range(0, len(content), 7), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="plan"):
            mls.Plan.load(path)


@given(data=st.data())
def test_a_flipped_byte_never_loads_as_another_plan(tmp_path_factory, content, data):
    path = tmp_path_factory.mktemp("flips") / "plan"
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        mutated[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(mutated)
    try:
        loaded = mls.Plan.load(path)
    except ValueError:
        return
    assert loaded == some_plan(samples=2)


def test_every_single_byte_matters(tmp_path, content):
    """All positions, one mutation each: nothing but ValueError, and never another plan."""
    path, plan = tmp_path / "plan", some_plan(samples=2)
    for position in range(len(content)):
        mutated = bytearray(content)
        mutated[position] ^= 1
        path.write_bytes(mutated)
        try:
            assert mls.Plan.load(path) == plan
        except ValueError as error:
            assert str(path) in str(error) or "plan" in str(error)  # noqa: PT017


def rewrite(content, change):
    """The file with its metadata changed."""
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    return save(load(content), change(metadata))


@pytest.mark.parametrize("version", ["4", "99", "", "one", "-1"])
def test_another_format_version_is_refused_by_number(tmp_path, content, version):
    (tmp_path / "plan").write_bytes(rewrite(content, lambda metadata: {**metadata, "version": version}))
    with pytest.raises(ValueError, match=rf"version {version!r}.*reads versions \(1, 2, 3\).*upgrade"):
        mls.Plan.load(tmp_path / "plan")


@pytest.mark.parametrize("key", ["format", "version", "truncated", "sha256"])
def test_missing_metadata_is_refused(tmp_path, content, key):
    without = rewrite(content, lambda metadata: {k: v for k, v in metadata.items() if k != key})
    (tmp_path / "plan").write_bytes(without)
    with pytest.raises(ValueError, match="plan"):
        mls.Plan.load(tmp_path / "plan")


def test_the_truncation_mark_is_protected(tmp_path):
    some_plan(truncated=True).save(tmp_path / "plan")
    content = (tmp_path / "plan").read_bytes()
    (tmp_path / "plan").write_bytes(rewrite(content, lambda metadata: {**metadata, "truncated": "0"}))
    with pytest.raises(ValueError, match="checksum"):
        mls.Plan.load(tmp_path / "plan")


@pytest.mark.parametrize("dtypes", [(torch.uint8, torch.float64), (torch.bool, torch.float32)])
def test_hits_and_weights_of_another_dtype_are_refused_though_the_checksum_fits(tmp_path, content, dtypes):
    tensors = {name: load(content)[name].to(dtype) for name, dtype in zip(("hits", "weights"), dtypes, strict=True)}
    sha256 = checksum(["0"], [tensors["hits"], tensors["weights"]])
    metadata = {"format": "multilevel_sde.plan", "version": "2", "truncated": "0", "sha256": sha256}
    (tmp_path / "plan").write_bytes(save(tensors, metadata))
    with pytest.raises(ValueError, match="hits or weights of another dtype"):
        mls.Plan.load(tmp_path / "plan")


@pytest.mark.parametrize("tensors", [{}, {"hits": torch.ones(1, 1)}, {"weights": torch.ones(2)}])
def test_other_safetensors_files_are_not_plans(tmp_path, tensors):
    (tmp_path / "other").write_bytes(save(tensors))
    with pytest.raises(ValueError, match="not a plan"):
        mls.Plan.load(tmp_path / "other")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        mls.Plan.load(tmp_path / "none")


@pytest.mark.parametrize("failing", ["replace", "fsync", "fdopen"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "plan"
    some_plan().save(path)
    before = path.read_bytes()

    def fail(*arguments, **keywords):
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        some_plan(samples=3).save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan"]


def test_a_written_file_replaces_the_old_one_and_has_the_usual_permissions(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"first, longer")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_seal_is_of_the_values_not_of_their_layout():
    values = {"b": {"y": [1.0, 1e-300], "x": 0.1}, "a": (1, None), 9: "nine", 10: "ten"}
    read = json.loads(json.dumps(seal(values), indent=3))
    assert is_sealed(read)
    assert is_sealed(dict(reversed(read.items())))
    assert is_sealed(read | {"b": dict(reversed(read["b"].items()))})
    for change in ({"b": {"y": [1.0, 1e-300], "x": 0.2}}, {"a": [1, 0]}, {"c": 1}, {"9": "ten"}, {"sha256": ""}):
        assert not is_sealed(read | change)
    assert not is_sealed({name: value for name, value in read.items() if name != "10"})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((["a"], [torch.ones(2)]), (["b"], [torch.ones(2)])),
        ((["a"], [torch.ones(2)]), (["a"], [torch.ones(1, 2)])),
        ((["a"], [torch.ones(2)]), (["a"], [torch.tensor([1.0, 1.0000001])])),
        ((["a"], [torch.ones(1), torch.zeros(1)]), (["a"], [torch.zeros(1), torch.ones(1)])),
    ],
)
def test_a_checksum_is_of_texts_shapes_and_contents_in_order(one, other):
    assert checksum(*one) == checksum(*one)
    assert checksum(*one) != checksum(*other)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; add the name of the file"):
        write_atomically(tmp_path, b"")
    assert not list(tmp_path.iterdir())


def test_a_damaged_header_is_not_quoted_whole(tmp_path, content):
    """A header whose metadata are a text, not a table: the reader's own message holds all of them."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = json.dumps(header["__metadata__"]) + "x" * 2000
    written = json.dumps(header).encode()
    (tmp_path / "plan.safetensors").write_bytes(struct.pack("<Q", len(written)) + written + content[8 + size :])
    with pytest.raises(ValueError, match="is damaged or not a safetensors file") as caught:
        mls.Plan.load(tmp_path / "plan.safetensors")
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
