"""Sampling goes on in the same memory: the long run's short form, and that the long run would see a leak."""

import mmap

import pytest

from benchmarks.growth import soak


def test_growth_is_between_the_second_and_the_last_fifth():
    assert soak.growth([0, 90] + [50, 51] * 4) == 0  # the first fifth does not count
    assert soak.growth([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == 6
    assert soak.growth([9, 9, 50, 80, 0, 0, 0, 0, 53, 99]) == 3  # nor does memory that is given back


def test_a_leak_is_seen(monkeypatch, capsys):
    """Pages of its own, so that nothing that was freed before is used again."""
    kept = []

    def leak(number, plan):
        kept.append(mmap.mmap(-1, 2**21))
        kept[-1].write(b"x" * 2**21)

    monkeypatch.setattr(soak, "one_round", leak)
    assert soak.main(["--minutes", "0"]) == 1
    monkeypatch.setattr(soak, "one_round", lambda number, plan: None)
    assert soak.main(["--minutes", "0"]) == 0
    assert "10 rounds of 32 images in 0 minutes" in capsys.readouterr().out


@pytest.mark.slow
def test_three_minutes_of_sampling_hold_the_same_memory(capsys):
    """The hour is `make soak`."""
    status = soak.main(["--minutes", "3"])
    with capsys.disabled():
        print(f" [{capsys.readouterr().out.splitlines()[-1]}]", end="")
    assert status == 0
