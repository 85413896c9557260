"""Sphinx configuration: Markdown pages, docstrings as they are, warnings are errors."""

import sys
from pathlib import Path

import multilevel_sde

sys.path.append(str(Path(__file__).parent))

project = "multilevel_sde"
author = "the multilevel_sde maintainers"
release = multilevel_sde.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
napoleon_google_docstring = True
napoleon_custom_sections = ["References", "Reference"]
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_mock_imports = []
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "multilevel_sde"
html_static_path = ["images"]
exclude_patterns = ["_build"]
nitpicky = False


def _plain_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text: escape what reStructuredText would take for markup, outside of doctests."""
    inside = False
    for index, line in enumerate(lines):
        inside = line.lstrip().startswith(">>>") or (inside and bool(line.strip()))
        if not inside:
            lines[index] = line.replace("|", r"\|").replace("*", r"\*")


def setup(app) -> None:
    """Run before napoleon, whose own markup must stay."""
    app.connect("autodoc-process-docstring", _plain_text, priority=100)
