"""For mkdocs: a word of code, such as an option, is not torn at its hyphens."""

from __future__ import annotations

import re

_CODE = re.compile(r"(<code[^>]*>)(.*?)(</code>)", re.DOTALL)
# A longer one, such as the id of a test, would not fit a phone.
_WORD = re.compile(r"(?<!\S)(?=\S*-)\S{2,40}(?!\S)")


def on_page_content(html: str, **_: object) -> str:
    def untorn(found: re.Match[str]) -> str:
        return found[1] + _WORD.sub(r"<span>\g<0></span>", found[2]) + found[3]

    return _CODE.sub(untorn, html)
