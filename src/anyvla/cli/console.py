"""The console of every command: it prints text verbatim, without markup.

Task names, paths and error messages come from users and data sets. Rich would read `[red]` as a style, fail on `[/]`
and replace `:smile:`; a terminal would execute an escape sequence.
"""

from __future__ import annotations

import re
from typing import Any

import rich.console
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # tabs and line ends stay


def visible(text: str) -> str:
    """Return `text` with control characters written as escapes, such as `\\x1b`."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class Console(rich.console.Console):
    """A rich console without markup, emoji codes and highlighting. For styles, use `style=` or `rich.text.Text`."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Stop printing when the reader of standard error is gone. Rich would end the command."""
        if not self.stderr:
            super().on_broken_pipe()
        self.quiet = True

    def render_str(self, text: str, **options: Any) -> Text:
        """Return `text` with visible control characters; rich calls this for table cells too."""
        return super().render_str(visible(text), **options)
