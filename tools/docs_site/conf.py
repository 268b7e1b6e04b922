"""Sphinx's settings for the web site; `tools/docs.py` writes what is built, and calls this."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
FOUND = json.loads(Path(os.environ["PREFKIT_DOCS_FOUND"]).read_text(encoding="utf-8"))

project = FOUND["title"]
author = FOUND["author"]
copyright = FOUND["copyright"]
release = FOUND["version"]
language = "en"
extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx.ext.linkcode",
    "sphinx.ext.mathjax",
    "docs_site.extension",
]
source_suffix = {".ipynb": "myst-nb", ".md": "myst-nb"}
exclude_patterns = ["_static"]
templates_path: list[str] = []

# Notebooks keep their stored outputs; widgets would load scripts from other hosts.
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict] = {}
nb_render_text_lexer = "none"
nb_render_markdown_format = "myst"
nb_merge_streams = True
nb_code_prompt_show = "Show the {type}"
nb_code_prompt_hide = "Hide the {type}"
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
suppress_warnings = ["mystnb.unknown_mime_type"]  # widgets: the text beside them is shown

mathjax_path = "mathjax/tex-chtml.js"
python_maximum_signature_line_length = 60
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
copybutton_selector = "div.cell_input div.highlight > pre, div[class*=language-] pre"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "sphinx_book_theme"
html_title = FOUND["title"]
html_baseurl = FOUND["site"]
html_favicon = FOUND["logo"]
html_static_path = [FOUND["static"], str(Path(__file__).with_name("static"))]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_copy_source = True
html_last_updated_fmt = None
html_theme_options = {
    "logo": {"image_light": FOUND["logo"], "image_dark": FOUND["logo"], "text": FOUND["title"]},
    "navbar_persistent": [],
    "collapse_navbar": True,
    "repository_url": FOUND["repository"],
    "repository_branch": FOUND["branch"],
    "path_to_docs": "nbs",
    "use_repository_button": True,
    "use_source_button": True,
    "use_issues_button": True,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "max_navbar_depth": 4,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def linkcode_resolve(domain: str, info: dict) -> str | None:
    "The line of the source repository where a name of the reference stands."
    place = FOUND["lines"].get(f"{info.get('module')}.{info.get('fullname')}")
    if domain != "py" or not place:
        return None
    file, line = place
    return f"{FOUND['blob']}{file}#L{line}"
