"""All commands of the adapter, in the order in which a person needs them, which is that of `multilevel-sde --help`."""

from __future__ import annotations

from multilevel_diffusion.commands import demo, edit, measure, pilot, plan, quality, sample, train

__all__ = ["register"]


def register(subparsers) -> None:
    """Add the commands to an argparse subparsers object.

    Example:
        >>> import argparse
        >>> subparsers = argparse.ArgumentParser().add_subparsers()
        >>> register(subparsers)
        >>> list(subparsers.choices)
        ['demo', 'sample', 'plan', 'pilot', 'measure', 'train', 'quality', 'edit']
    """
    for room in (demo, sample, plan, pilot, measure, train, quality, edit):
        room.register(subparsers)
