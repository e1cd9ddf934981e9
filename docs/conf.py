"""How the pages are built: `make docs`.

The source is the repository, so that links between Markdown files are the ones that work where the files lie. The tree
of pages stands here and not in the README, which would show it. Nothing is fetched, neither now nor when a page is
read: formulas become MathML by docutils, and links to other sites are not followed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import loraga

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "loraga"
version = release = loraga.__version__
root_doc = "README"
PAGES = {
    "Use": [
        "docs/quick-start",
        "docs/existing-script",
        "docs/quantised",
        "docs/choosing",
        "docs/learning-rate",
        "docs/saving",
        "docs/rescue",
        "docs/other-tools",
        "docs/errors",
        "docs/trainers",
        "docs/architectures",
    ],
    "Command line": [
        "docs/command-line",
        "docs/recipes",
        "docs/comparing",
        "docs/tasks",
        "docs/generated-code",
        "docs/mt-bench",
        "docs/inspect",
    ],
    "Inside": [
        "docs/mathematics",
        "docs/performance",
        "docs/architecture",
        "docs/results/LOG",
        "docs/results/chain_sum/README",
        "docs/results/sum_or_sign/README",
        "docs/results/inspect/inspect",
    ],
    "Reference": ["docs/reference", "CONTRIBUTING", "CHANGELOG"],
}
include_patterns = ["*.md", "docs/**"]
exclude_patterns = [".*", "docs/_build", "build", "dist", "runs", "demo_output", "search_output", "src", "tests"]
exclude_patterns += ["docs/results/*/tables"]  # the page beside them holds them all

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # a link to a heading that does not exist is a warning, and a warning ends the build
nitpicky = True
# What other projects' pages describe: checking that would need their inventories, which only the network has. A name
# of a type that only type checkers import stands in a signature as it is written there.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|peft|nn|os|collections|pathlib|typing|transformers)\..*"),
    ("py:.*", r"(Tensor|PeftModel|Trainer|Path|Any|Iterable|Mapping|Sequence|Callable|Literal|PathLike)"),
    ("py:.*", r"(Batch|Curve|LossFunction|WeightFunction|Estimator|Offset|Missing|Stability)"),
]

default_role = "code"  # a docstring writes `name`, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"loraga {release}"
html_show_sphinx = False
html_copy_source = False
html_css_files = ["pages.css"]
html_static_path = ["style"]
html_math_renderer = "mathml"
pygments_style = "friendly"


def add_tree_of_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Ends the front page with the tree of all pages, which only the navigation shows."""
    if page != root_doc:
        return
    for caption, pages in PAGES.items():
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


def show_formula(self: Any, node: nodes.math | nodes.math_block) -> None:
    """Writes a formula as MathML; what docutils cannot read ends the build."""
    self.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Leads from the name that servers look for to the front page."""
    if error is None:
        Path(app.outdir, "index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">\n')


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers what stands above."""
    app.connect("source-read", add_tree_of_pages)
    app.connect("build-finished", add_index)
    app.add_html_math_renderer("mathml", (show_formula, None), (show_formula, None))
    return {"parallel_read_safe": True}
