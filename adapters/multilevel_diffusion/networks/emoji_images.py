"""The emoji of Noto as a folder of images with classes, from the npm package `emoji-datasource-google`.

    npm pack emoji-datasource-google@16.0.0
    python -m multilevel_diffusion.networks.emoji_images emoji-datasource-google-16.0.0.tgz --out emoji

Each picture of 64x64 is laid over white and written as `CLASS/GROUP+NAME.png`. Variants by skin tone and gender are
near copies: they share a group, what stands before the `+`, and :class:`.ImageFolder` keeps whole groups in training
or out of it. The licences of the package (MIT) and of the artwork (Apache 2.0) are written beside the classes.

References:
    https://github.com/iamcal/emoji-data (the package), https://github.com/googlefonts/noto-emoji (the artwork).
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from multilevel_sde.files import write_atomically

__all__ = ["CLASSES", "emoji_folder"]

CLASSES: dict[str, tuple[str, str, str]] = {
    "activities": ("Activities", ".*", ".*"),
    "animal-faces": ("Animals & Nature", ".*", ".* FACE"),
    "animals": ("Animals & Nature", ".*", ".*"),
    "flags": ("Flags", ".*", ".*"),
    "food": ("Food & Drink", ".*", ".*"),
    "heads": ("People & Body", "person", ".*"),
    "objects": ("Objects", ".*", ".*"),
    "people": ("People & Body", ".*", ".*"),
    "smileys": ("Smileys & Emotion", "face.*|.*face", ".*"),
    "symbols": ("Symbols", ".*", ".*"),
    "travel": ("Travel & Places", ".*", ".*"),
}
"""The classes: patterns of the package's category, subcategory and name."""

FACES = ("animal-faces", "heads", "smileys")
PACKAGE = "emoji-datasource-google@16.0.0"
_TONES_AND_GENDERS = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff", "2640", "2642", "200d", "fe0f", "27a1"}
_PERSON = {"1f468": "1f9d1", "1f469": "1f9d1"}  # man and woman


def emoji_folder(package: str | Path, out: str | Path, classes: Sequence[str] = FACES) -> dict[str, int]:
    """Write the package's pictures as a folder of classes, and return how many each class has.

    Arguments:
        package: The `.tgz` that `npm pack` wrote, or the folder that it unpacks to.
        out: The folder; made if missing.
        classes: Some of `CLASSES`.

    Raises:
        ValueError: A class is unknown, or `package` is not that package.

    Example:
        >>> emoji_folder("emoji.tgz", "emoji", ["cars"])
        Traceback (most recent call last):
        ...
        ValueError: "classes" has 'cars', expected some of activities, animal-faces, animals, flags, food, heads, ...
    """
    if unknown := [name for name in classes if name not in CLASSES]:
        raise ValueError(f'"classes" has {unknown[0]!r}, expected some of {", ".join(CLASSES)}; choose among them')
    read, root, counts = _reader(Path(package)), Path(out), Counter()
    for entry, name in product(json.loads(read("emoji_pretty.json")), classes):
        for image in _images(entry) if _belongs(entry, *CLASSES[name]) else ():
            write_atomically(root / name / f"{_group(image)}.png", _over_white(read(f"img/google/64/{image}")))
            counts[name] += 1
    write_atomically(root / "LICENSE.emoji-datasource.txt", read("LICENSE"))
    noto = resources.files("multilevel_diffusion") / "ladders" / "emoji32" / "LICENSE.noto-emoji.txt"
    write_atomically(root / noto.name, noto.read_bytes())
    return dict(sorted(counts.items()))


def _belongs(entry: Mapping[str, Any], *patterns: str) -> bool:
    told = (entry["category"], entry["subcategory"], entry["name"])
    return all(re.fullmatch(pattern, text) for pattern, text in zip(patterns, told, strict=True))


def _images(entry: Mapping[str, Any]) -> Iterator[str]:
    """Names of the files of an emoji and of its variants by skin tone."""
    for one in (entry, *entry.get("skin_variations", {}).values()):
        if one["has_img_google"]:
            yield one["image"]


def _group(image: str) -> str:
    """Return GROUP+NAME for a file, NAME where it has no variants."""
    name = image.removesuffix(".png")
    group = "-".join(_PERSON.get(code, code) for code in name.split("-") if code not in _TONES_AND_GENDERS)
    return name if group in ("", name) else f"{group}+{name}"


def _over_white(content: bytes) -> bytes:
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    written = io.BytesIO()
    white.convert("RGB").save(written, "PNG")
    return written.getvalue()


def _reader(package: Path) -> Callable[[str], bytes]:
    """Return what gives the content of a file of the package."""
    if package.is_dir():
        return _or_refused(package, lambda name: (package / name).read_bytes())
    if not (package.is_file() and tarfile.is_tarfile(package)):
        raise ValueError(
            f'"package" is {str(package)!r}, expected the file that `npm pack {PACKAGE}` writes, or the folder that it '
            "unpacks to; give one"
        )
    archive = tarfile.open(package)  # noqa: SIM115 (read as long as what is returned lives)
    members = {member.name.partition("/")[2]: member for member in archive.getmembers()}

    def read(name: str) -> bytes:
        file = archive.extractfile(members[name])
        assert file is not None
        return file.read()

    return _or_refused(package, read)


def _or_refused(package: Path, read: Callable[[str], bytes]) -> Callable[[str], bytes]:
    def found(name: str) -> bytes:
        try:
            return read(name)
        except (KeyError, FileNotFoundError):
            raise ValueError(f'"package" is {str(package)!r}, which has no {name}; give {PACKAGE}') from None

    return found


def _main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m multilevel_diffusion.networks.emoji_images", description=__doc__)
    parser.add_argument("package", help="the .tgz of `npm pack`, or the folder that it unpacks to")
    parser.add_argument("--out", required=True, help="the folder of images")
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=FACES)
    told = parser.parse_args(arguments)
    try:
        counts = emoji_folder(told.package, told.out, told.classes)
    except ValueError as error:
        parser.error(str(error))
    print(", ".join(f"{count} {name}" for name, count in counts.items()) + f" written to {told.out}")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
