"""Sphinx's configuration of the pages: Markdown of the whole repository, and a reference from the docstrings.

The source folder is the repository: README files of folders are pages too, and links between pages are as on a code host.
"""

import re
import tomllib
from pathlib import Path

from sphinx.ext import napoleon
from sphinx.ext.napoleon.docstring import GoogleDocstring

_ROOT = Path(__file__).resolve().parents[1]

project = "PanGu-Σ on MindSpore"
version = release = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**.md",
    *(f"{top}/**README.md" for top in ("src", "ascend_ops", "experiments", "tests")),
]
exclude_patterns = [".*", "*.egg-info", "build", "data", "runs", "exports", "**/model_configs"]
html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_copyright = False
highlight_language = "text"
suppress_warnings = ["misc.highlighting_failure"]  # JSON with … in it is meant for people
myst_heading_anchors = 4
autodoc_mock_imports = ["mindspore", "mindformers"]  # docstrings need neither, and the build takes seconds without them
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
_TYPES = ("AnyConfig", "AnyPath", "AtLeastOne", "Count", "Overrides", "Paths", "Router", "Seconds", "Text", "Texts")
autodoc_type_aliases = {name: name for name in _TYPES}  # not what pydantic checks them with
default_role = "code"
smartquotes = False


def _as_restructured_text(line: str) -> str:
    """A line of a docstring, which is plain text with `code` in backticks, so that no other character is markup."""
    parts = line.split("`")
    return "`".join(re.sub(r"([*_|\\])", r"\\\1", part) if n % 2 == 0 else part for n, part in enumerate(parts))


def _docstring(app, what, name, obj, options, lines):
    if what in (
        "function",
        "method",
    ):  # `Args:` and `Examples:`; of attributes it would take a colon for the end of a type
        lines[:] = GoogleDocstring(lines, napoleon.Config()).lines()
    lines[:] = [] if what == "module" else [_as_restructured_text(line) for line in lines]


def _signature(app, what, name, obj, options, signature, returned):
    """No signature for a section of a configuration: its keys are listed below it."""
    if isinstance(obj, type) and hasattr(obj, "model_fields"):
        return None, None
    return re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature) if signature else signature, returned


def setup(app):
    """Connect what this project's docstrings need with Sphinx."""
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-process-signature", _signature)
