"""Sphinx's settings. `make docs` builds build/docs; warnings are errors."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import hpcai  # noqa: E402

project = "hpcai"
author = "the hpcai contributors"
copyright = "the hpcai contributors; Apache-2.0"
version = release = hpcai.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_design", "extension"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["requirements.txt"]

nitpicky = True
# What other projects document, aliases, and the inner names that signatures show.
nitpick_ignore_regex = [
    ("py:.*", r"(?!hpcai\.).*"),
    ("py:.*", r"hpcai\..*\.[A-Z]"),
    ("py:.*", r"hpcai\.(arena|comm\.(wire|collectives|select)|nn\.split|ops|train\.options)\..*"),
    ("py:class", r"hpcai\.comm\.background\.Deferred"),
]

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

smartquotes = False

html_theme = "pydata_sphinx_theme"
html_title = f"hpcai {release}"
html_static_path = ["_static"]
html_css_files = ["hpcai.css"]
html_show_sourcelink = False
html_sidebars = {"index": [], "speed": [], "limits": [], "moving": [], "versions": []}
html_theme_options = {
    "logo": {"text": "hpcai"},
    "header_links_before_dropdown": 5,
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": False,
    "navigation_with_keys": False,
    "show_toc_level": 2,
}
