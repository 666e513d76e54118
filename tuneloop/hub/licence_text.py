"""The text of a web page of terms, for a terminal: paragraphs and list items, without scripts, menus and markup."""

from __future__ import annotations

import re
import textwrap
from html.parser import HTMLParser

_SILENT = {
    "script", "style", "nav", "header", "footer", "head", "noscript", "template", "svg", "button", "form", "aside"
}  # fmt: skip
_BLOCKS = {
    "p", "div", "section", "article", "main", "li", "ul", "ol", "tr", "table", "br", "blockquote", "pre", "dt", "dd",
    "h1", "h2", "h3", "h4", "h5", "h6",
}  # fmt: skip


class _Reader(HTMLParser):
    """Collects the text of blocks; `begin` is the first block of the first main heading, what comes before is menus."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks = [""]
        self.begin = 0
        self._silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self._silent.append(tag)
        if tag in _BLOCKS:
            self.blocks.append("- " if tag == "li" and not self._silent else "")
        if tag == "h1" and not self.begin and not self._silent:
            self.begin = len(self.blocks) - 1

    def handle_endtag(self, tag: str) -> None:
        # Pages are not well formed: what closes is the innermost of its kind, with all that was left open in it.
        if tag in self._silent:
            while self._silent.pop() != tag:
                pass
        if tag in _BLOCKS:
            self.blocks.append("")

    def handle_data(self, text: str) -> None:
        if not self._silent:
            self.blocks[-1] += text


def plain_text(page: str, width: int = 100) -> str:
    """The paragraphs of an HTML page, wrapped at `width` columns, with a blank line between two.

    >>> print(plain_text("<nav>Menu</nav><h1>Terms</h1><script>x()</script><ul><li>Be <b>good</b>.</li></ul>"))
    Terms
    <BLANKLINE>
    - Be good.
    """
    reader = _Reader()
    reader.feed(page)
    reader.close()
    blocks = [" ".join(block.split()) for block in reader.blocks[reader.begin :]]
    blocks = [block for block in blocks if re.search(r"\w", block)]
    indented = [textwrap.fill(b, width, subsequent_indent="  " if b.startswith("- ") else "") for b in blocks]
    return "\n\n".join(indented)
