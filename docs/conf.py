"""Sphinx configuration: Markdown pages, docstrings as they are, warnings are errors."""

import multilevel_sde

project = "multilevel_sde"
author = "the multilevel_sde maintainers"
release = multilevel_sde.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
napoleon_google_docstring = True
napoleon_custom_sections = ["References", "Reference"]
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_mock_imports = []
html_theme = "furo"
html_title = "multilevel_sde"
html_static_path = ["images"]
exclude_patterns = ["_build"]
nitpicky = False
