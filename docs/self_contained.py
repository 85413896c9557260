"""Check that built pages load nothing from elsewhere: no script, style, font or image. Links for people are fine.

python docs/self_contained.py docs/_build/html
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "embed": "src",
          "object": "data", "link": "href", "image": "href", "use": "href"}  # fmt: skip
_FOR_PEOPLE = {"index", "search", "next", "prev", "canonical"}
_ELSEWHERE = re.compile(r"(?:[a-z]+:)?//", re.IGNORECASE)
_IN_STYLE = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:[a-z]+:)?//[^"')\s]+)""", re.IGNORECASE)


class _Page(HTMLParser):
    """What a page loads, and its styles."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.styles = ""
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what the element loads."""
        given = {name: value or "" for name, value in attrs}
        self._style = tag == "style"
        self.styles += given.get("style", "") + "\n"
        if tag == "link" and given.get("rel") in _FOR_PEOPLE:
            return
        self.loads += [given[_LOADS[tag]]] if tag in _LOADS and _LOADS[tag] in given else []
        self.loads += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]

    def handle_data(self, data: str) -> None:
        """Collect styles."""
        if self._style:
            self.styles += data


def loads_from_elsewhere(folder: Path) -> list[str]:
    """Return a sentence for each thing that a page or a style sheet loads from another machine.

    Arguments:
        folder: The built pages.
    """
    found = []
    for file in sorted(folder.rglob("*.html")):
        page = _Page()
        page.feed(file.read_text(encoding="utf-8"))
        elsewhere = [one for one in page.loads if _ELSEWHERE.match(one)] + _IN_STYLE.findall(page.styles)
        found += [f"{file.relative_to(folder)} loads {one}" for one in elsewhere]
    for file in sorted(folder.rglob("*.css")):
        found += [f"{file.relative_to(folder)} loads {one}" for one in _IN_STYLE.findall(file.read_text("utf-8"))]
    return found


if __name__ == "__main__":
    problems = loads_from_elsewhere(Path(sys.argv[1]))
    print("\n".join(problems) or f"{sys.argv[1]} loads nothing from elsewhere")
    sys.exit(bool(problems))
