"""One HTML file of parts: template, style, scripts and data. It loads nothing, and its policy forbids it to."""

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jaxcircuits.errors import InputError
from jaxcircuits.files import write_bytes

SCRIPTS = ("graph", "selection", "layout", "painter", "pointer", "panel", "explorer")
"""In the order in which they need each other."""

ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
"""What could end a script element or a line of JavaScript; in JSON these signs stand in strings only."""


def page(data: Mapping[str, Any], title: str) -> str:
    """The page as text.

    Args:
        data: From `content`.
        title: Of the window.

    >>> from jaxcircuits.report.explorer import page
    >>> text = page({"tokens": ["</script>"]}, "a < b")
    >>> "a &lt; b" in text, text.count("</script>")
    (True, 3)
    """
    here = files("jaxcircuits.report.explorer")

    def part(name: str) -> str:
        return here.joinpath(name).read_text(encoding="utf-8")

    style = part("explorer.css")
    library = f"/*\n{part('vendor/LICENSE')}*/\n{part('vendor/d3.min.js')}"  # each copy carries its licence
    script = "\n".join(part(f"scripts/{name}.js") for name in SCRIPTS)
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src {_digest(library)} {_digest(script)}; style-src {_digest(style)}"
    )
    filled = {
        "policy": policy,
        "generator": f"jaxcircuits {version('jaxcircuits')}",
        "title": html.escape(title),
        "style": style,
        "data": json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(ESCAPED),
        "library": library,
        "script": script,
    }
    before, *pieces = part("template.html").split("{{")
    text = [before]
    for piece in pieces:  # each slot once, so that what is put in is not looked through again
        name, _, after = piece.partition("}}")
        text += [filled[name], after]
    return "".join(text)


def write_page(path: str | os.PathLike, data: Mapping[str, Any], title: str, *, overwrite: bool = False) -> int:
    """Writes the page whole; returns its size in bytes.

    Raises:
        InputError: The place is taken, or no file can be there.
    """
    check_page(path, overwrite=overwrite)
    # A text may hold lone surrogates, which UTF-8 has no bytes for: shown as the sign for what cannot be shown.
    written = page(data, title).encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    write_bytes(path, written)
    return len(written)


def check_page(path: str | os.PathLike, *, overwrite: bool) -> None:
    """Refuses a place for a page that is taken, or that no file can be written to.

    Raises:
        InputError: See there.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"the output {path} is a directory, expected a file such as circuit.html.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"the output {path}: there is no directory {path.parent}; make it or name another.")
    if path.exists() and not overwrite:
        raise InputError(f"the output {path} exists already; pass --overwrite to replace it or name another.")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
