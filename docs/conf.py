"""How Sphinx builds the documentation: `make docs`. What is generated comes from docs/_ext."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # everything is imported, nothing is computed
os.environ.setdefault("WANDB_MODE", "disabled")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import rlhf_lab  # noqa: E402

project = "rlhf_lab"
version = release = rlhf_lab.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "_ext.pages", "_ext.docstrings", "_ext.equations"]
exclude_patterns = ["_build", "_ext"]
nitpicky = True  # a link that leads nowhere is a warning, and `make docs` takes warnings for errors
nitpick_ignore_regex = [("py:.*", ".*")]  # but for the types in signatures: most are other libraries'

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch's own, of `forward`, say nothing of ours
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

smartquotes = False  # "" is an empty text

html_theme = "furo"
html_title = f"rlhf_lab {release}"
html_static_path = ["_static"]
html_css_files = ["lab.css"]
html_show_copyright = False
html_copy_source = False
html_math_renderer = "outline"  # drawn while building: a page needs no network and no script for its formulas
