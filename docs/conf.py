"""Sphinx: `make docs`."""

from __future__ import annotations

import re
from typing import Any

from pylibevent import __version__

project = "pylibevent"
author = "the pylibevent authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"pylibevent {release}"
html_static_path = ["_static"]
html_css_files = ["side_by_side.css"]
templates_path: list[str] = []

myst_heading_anchors = 4
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

autodoc_default_options = {"members": True, "member-order": "bysource", "undoc-members": True}
autodoc_class_signature = "mixed"
autoclass_content = "both"
autodoc_preserve_defaults = True


def as_rst(_app: Any, what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: a name in backticks is a reference, and `*` is itself."""

    def reference(match: re.Match[str]) -> str:
        text = match[1]
        if re.fullmatch(r"[\w.]+(\(.*\))?", text):
            return f":py:obj:`{text} <{text.partition('(')[0]}>`"
        return f"``{text}``"

    for i, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        parts[::2] = [re.sub(r"([*|]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [re.sub(r"`([^`]+)`", reference, part) for part in parts[1::2]]
        lines[i] = "".join(parts)
    if what == "method" and not lines:
        lines.append("\n")


def shorter(
    _app: Any, _what: str, _name: str, _obj: Any, _options: Any, signature: str, result: str
) -> tuple[str, str]:
    """Without what only type checkers need to know."""
    for text, short in ((" | Variadic", ""), (": Unpack[Args]", ""), ("Unpack[Args]", "...")):
        signature = signature and signature.replace(text, short)
    return signature, result


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", shorter)
    app.connect("autodoc-process-docstring", as_rst)
