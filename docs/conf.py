"""Sphinx configuration: Markdown pages, docstrings, formulas without scripts; warnings are errors."""

import sys
from pathlib import Path

import multilevel_sde

sys.path.append(str(Path(__file__).parent))  # mathml, docstrings

project = "multilevel_sde"
author = "the multilevel_sde maintainers"
release = multilevel_sde.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "mathml", "docstrings"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
napoleon_google_docstring = True
napoleon_custom_sections = ["References", "Reference"]
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "multilevel_sde"
html_static_path = ["images", "_static"]
html_css_files = ["house.css"]
exclude_patterns = ["_build"]
nitpicky = False
