"""What a job and a folder that holds one already have to do with each other: the same, a longer one, or another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from multilevel_diffusion.sampling.job import Job
from multilevel_diffusion.sampling.shards import read_manifest

__all__ = ["as_continued", "told_of"]


def as_continued(job: Job, folder: str | Path, arguments: Mapping[str, Any] | None = None) -> Job:
    """Return a job as it goes on in a folder.

    In an empty folder that is the job. In one that holds the same job with the first of its seeds only, it is the job
    with a cut where that one ended, so that what is there stays as it is and only the others are computed.

    Arguments:
        job: What is to be sampled.
        folder: Where.
        arguments: The arguments of a command that the job came from, by which a message tells two jobs apart.

    Raises:
        ValueError: The folder holds another job, or a damaged manifest.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return job
    said = manifest["job"]
    (first, stop), cuts = said["seeds"], tuple(said.get("cuts", ()))
    if first == job.seeds.start and stop <= job.seeds.stop and job.until(stop, cuts).description == said:
        begun = max((first, *cuts))
        more = stop < job.seeds.stop and (stop - begun) % job.shard > 0
        return replace(job, cuts=(*cuts, stop) if more else cuts)
    raise ValueError(_another(job, manifest, folder, arguments))


def told_of(job: Job, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a person is told about a job: its arguments, and the plan in numbers."""
    plan = {"steps": job.plan.steps, "evaluations": job.plan.evaluations.tolist()}
    return {"plan": plan, **({"arguments": dict(arguments)} if arguments else {})}


def _another(job: Job, manifest: Mapping[str, Any], folder: str | Path, arguments: Mapping[str, Any] | None) -> str:
    """The sentence that says in what two jobs differ."""
    told, said, mine = manifest.get("told") or {}, manifest["job"], job.description
    before = told.get("arguments") or {}
    if before and arguments:
        other = {name: value for name, value in arguments.items() if before.get(name) != value}
        if len(other) > 1:
            other.pop("--count", None)  # more images alone are welcome
        changed = [f"{name} {_as_words(before.get(name))} against {_as_words(new)}" for name, new in other.items()]
        if changed:
            return (
                f'"{folder}" holds images made with other arguments: {", ".join(changed)}; give another folder with '
                "--out, or those arguments"
            )
    keys = [key for key in (*mine, *said) if mine.get(key) != said.get(key)]
    key = next((key for key in keys if key not in ("seeds", "cuts")), "seeds")
    if key == "plan":
        old, new = told.get("plan") or {}, told_of(job)["plan"]
        words = f"a plan of {old.get('steps', 'other')} steps with evaluations {old.get('evaluations')} against one of "
        words += f"{new['steps']} with {new['evaluations']}"
        words = "a plan with other weights or times" if old == new else words
    elif key == "ladder":
        words = "other networks, weights or another schedule"
    elif key == "conditions":
        words = "other conditions of the same images"
    else:
        words = f"{key} {said.get(key)} against {mine.get(key)}"
    return f'"{folder}" holds another job ({words}); give another folder, or delete that one'


def _as_words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
