"""Links between pages: the repository's paths become those of the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def rewritten(text: str, source: str, pages: Mapping[str, str], root: Path) -> str:
    """Return a page's text with its links as the site has them.

    A link to a file that is no page becomes its path, since the site has no copy of it.

    Raises:
        ValueError: a link leads nowhere.
    """

    def link(found: re.Match[str]) -> str:
        mark, label, target = found.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in path:
            return found[0]
        full = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if full in pages:
            return f"{mark}[{label}]({pages[full]}{'#' + anchor if anchor else ''})"
        if not (root / full).exists():
            raise ValueError(f"{source} links to {target}, which is not there")
        if posixpath.dirname(full) == "docs" and not full.endswith(".md"):
            return f"{mark}[{label}]({posixpath.basename(full)})"
        return f"{label} (`{full}`)" if label.strip("`") != full else f"`{full}`"

    text = re.sub(r'src="docs/([^"]+)"', r'src="\1"', text)
    return _LINK.sub(link, text)
