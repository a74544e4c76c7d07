"""How the site is built: ``make docs``. What can rot is made of the sources at each build, by `from_sources`."""

import os
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import from_sources  # noqa: E402

project = "kalavai_nb"
author = "The kalavai_nb developers"
copyright = author
version = release = metadata.version("kalavai-nb")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_made/*.md", "Thumbs.db"]
# what is written as `name` in a docstring is looked for in the reference, and is code where it is not there
default_role = "py:obj"

myst_enable_extensions = ["deflist", "colon_fence", "html_image"]
myst_heading_anchors = 3
# notebooks of examples/ are shown as they are; a build that has minutes may run them
nb_execution_mode = "force" if os.environ.get("KALAVAI_DOCS_EXECUTE") == "1" else "off"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
# a live display has a form for those who only read
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 72
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False

html_theme = "furo"
html_title = "kalavai_nb"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
# prompts and what a command answers are not copied
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app: object) -> None:
    """Make the pages that are made of sources, before Sphinx looks which pages there are."""
    from_sources.make(HERE / "_made", HERE.parent)
