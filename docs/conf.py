"""The documentation as a site: `make docs` builds it into docs/_build/html. Nothing is fetched while it builds."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # document this checkout, not an installed copy

project = "tinyrec"
author = copyright = "The tinyrec authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "tinyrec"
html_copy_source = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

# Formulas: math-core turns TeX into MathML, which browsers draw by themselves. Where it is not installed, Sphinx's
# default takes over: MathJax, which every reader's browser then fetches from a public server.
html_math_renderer = "mathml" if importlib.util.find_spec("math_core") else "mathjax"


def _mathml(translator: Any, node: nodes.Element) -> None:
    from math_core import LatexToMathML

    latex, display = node.astext(), isinstance(node, nodes.math_block)
    if display and r"\tag" in latex:
        latex = rf"\begin{{equation}}{latex}\end{{equation}}"  # only there is a tag allowed
    mathml = LatexToMathML().convert_with_local_state(latex, displaystyle=display)
    translator.body.append(f'<div style="margin: 1em 0; overflow-x: auto">{mathml}</div>' if display else mathml)
    raise nodes.SkipNode


def _as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text, not markup: keep figures and tables as they stand, and let prose flow."""
    shown: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip()):
        if re.search(r"^ |\S {3,}\S", paragraph, re.MULTILINE):  # indented or aligned by hand
            shown += [".. code-block:: text", "", *("   " + line for line in paragraph.splitlines()), ""]
        else:
            words = re.split(r"`([^`\n]+)`", paragraph)  # every second one is code
            words[::2] = [re.sub(r"([\\*`|_])", r"\\\1", w) for w in words[::2]]
            words[1::2] = [f"``{w}``" for w in words[1::2]]
            shown += ["".join(words).replace("\n", " "), ""]
    lines[:] = shown


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what Python itself writes about the fields of a NamedTuple."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(_mathml, None), block_renderers=(_mathml, None))
    app.connect("autodoc-process-docstring", _as_written)
    app.connect("autodoc-skip-member", _skip)
