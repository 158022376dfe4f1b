"""Sphinx's settings; ``make docs`` builds the site into build/docs, with every warning an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import klrl
import klrl.experience

for _name in klrl.experience.__all__:  # imported when they are used; autodoc only sees what is there
    vars(klrl.experience)[_name] = getattr(klrl.experience, _name)

project = "klrl"
author = "The klrl founders"
version = release = klrl.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sitegen.sphinx_parts",
]
exclude_patterns = ["sitegen", "recipes"]
autodoc_mock_imports = ["stable_baselines3"]
nitpicky = True

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "force"  # the notebook is kept without outputs
nb_execution_timeout = 600
nb_execution_raise_on_error = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # they are shown as written, by sitegen

html_theme = "furo"
html_title = f"klrl {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
