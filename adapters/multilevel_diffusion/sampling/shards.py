"""What lies in the folder of a sampling job: shards of images, and a manifest that lists them.

    manifest.json                    the job, its digest and arguments; once finished, the shards with their SHA-256
    plan.safetensors                 the plan and its times
    shard_000000000.safetensors      "images" (B, C, H, W) of consecutive seeds; named by the first one

A shard is a function of its seeds and the job, to the last byte: its header names a digest of the job, whatever other
seeds it has, and the shard's own seeds, and holds the SHA-256 of the images. So a shard is finished exactly if its file
is what the images in it would be written as; no list of finished shards has to be kept up to date, and a file that was
cut, changed or brought from another job is seen. Files appear whole or not at all (:mod:`multilevel_sde.files`);
nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from multilevel_diffusion.networks.fingerprints import as_bytes
from multilevel_sde.files import write_atomically

__all__ = ["Shard", "load_images", "read_manifest", "read_shards", "remove_temporary_files", "write_manifest"]

FORMAT = 1
MANIFEST, PLAN = "manifest.json", "plan.safetensors"


@dataclass(frozen=True)
class Shard:
    """Images of the seeds first, ..., last - 1 of one job, in one file.

    Arguments:
        job: Digest of all that its images depend on but the seeds.
        first: The first seed.
        last: The seed after the last one.

    Example:
        >>> shard = Shard("0123", 64, 66)
        >>> content = shard.encode(torch.zeros(2, 1, 8, 8))
        >>> shard.name, shard.intact(content), shard.intact(content[:-1] + b"x")
        ('shard_000000064.safetensors', True, False)
    """

    job: str
    first: int
    last: int

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"shard_{self.first:09d}.safetensors"

    @property
    def seeds(self) -> range:
        """The seeds."""
        return range(self.first, self.last)

    def encode(self, images: Tensor) -> bytes:
        """Return the content of the file for images (B, C, H, W), one per seed; the same bytes in every run."""
        images = images.detach().cpu().contiguous()
        checksum = hashlib.sha256(as_bytes(images)).hexdigest()
        header = {"format": FORMAT, "job": self.job, "seeds": [self.first, self.last], "sha256": checksum}
        # One entry: safetensors writes several in random order.
        return save({"images": images}, {"multilevel_diffusion.shard": json.dumps(header)})

    def intact(self, content: bytes) -> bool:
        """Return whether a file's content is this shard's: whole, unchanged, of this job and these seeds."""
        try:
            images = load(content)["images"]
        except (SafetensorError, KeyError):
            return False
        return len(images) == len(self.seeds) and self.encode(images) == content

    def entry(self, content: bytes) -> dict[str, Any]:
        """Return what the manifest says about the file."""
        return {"file": self.name, "seeds": [self.first, self.last], "sha256": hashlib.sha256(content).hexdigest()}

    def find(self, folder: Path) -> dict[str, Any] | None:
        """Return the entry of the file in a folder, None where it is missing or not intact."""
        try:
            content = (folder / self.name).read_bytes()
        except FileNotFoundError:
            return None
        return self.entry(content) if self.intact(content) else None


def digest(values: Any) -> str:
    """Return the SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_manifest(
    folder: Path,
    job: Mapping[str, Any],
    shards: Sequence[Mapping[str, Any]],
    told: Mapping[str, Any] | None = None,
) -> None:
    """Write the manifest of a job: its description and digest, the entries of its finished shards, and a checksum.

    Arguments:
        folder: The job's folder.
        job: Its description.
        shards: The entries.
        told: What a person is told about the job, such as its arguments; the images do not depend on it.
    """
    values: dict[str, Any] = {"format": FORMAT, "digest": digest(job), "job": job, "shards": shards}
    if told:
        values["told"] = told
    values["sha256"] = digest(values)
    write_atomically(folder / MANIFEST, (json.dumps(values, indent=1) + "\n").encode())


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Return the manifest in a folder, None where there is none.

    Raises:
        ValueError: The file is not a manifest, was changed, or has a newer format.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> read_manifest(folder) is None
        True
        >>> write_manifest(folder, {"tau": 1.0}, [])
        >>> read_manifest(folder)["job"]
        {'tau': 1.0}
    """
    path = Path(folder) / MANIFEST
    try:
        values = json.loads(path.read_bytes())
        version, checksum = values["format"], values.pop("sha256")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        version, checksum, values = FORMAT, "", None
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}, expected {FORMAT}; update multilevel-sde to read it")
    if digest(values) != checksum:
        raise ValueError(f"{path} is damaged or not the manifest of a job; delete it and run the job again")
    return values


def read_shards(folder: str | Path) -> Iterator[tuple[range, Tensor]]:
    """Yield the seeds and the images of every shard of a finished job, in order of the seeds.

    Arguments:
        folder: The job's folder.

    Raises:
        ValueError: The folder holds no finished job, or a shard is missing or not the one that was written.
    """
    manifest = read_manifest(folder)
    if manifest is None or not manifest["shards"]:
        raise ValueError(f'"folder" is {str(folder)!r}, which holds no finished job; run the job to its end')
    for entry in manifest["shards"]:
        path, (first, last) = Path(folder) / entry["file"], entry["seeds"]
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError(f"{path} is missing or not the file that was written; run the job again to repair it")
        yield range(first, last), load(content)["images"]


def load_images(folder: str | Path) -> Tensor:
    """Return all images of a finished job, (B, C, H, W) in order of the seeds.

    Raises:
        ValueError: As :func:`read_shards`.

    Example:
        >>> import tempfile
        >>> folder, shard = Path(tempfile.mkdtemp()), Shard("0123", 5, 7)
        >>> content = shard.encode(torch.ones(2, 1, 8, 8))
        >>> write_atomically(folder / shard.name, content)
        >>> write_manifest(folder, {}, [shard.entry(content)])
        >>> load_images(folder).shape
        torch.Size([2, 1, 8, 8])
    """
    return torch.cat([images for _, images in read_shards(folder)])


def remove_temporary_files(folder: Path, names: Sequence[str] = ("shard_*", MANIFEST, PLAN)) -> None:
    """Delete what writers that were killed have left of files of these names (patterns)."""
    for name in names:
        for path in folder.glob(f".{name}.????????"):  # as write_atomically names them
            path.unlink(missing_ok=True)
