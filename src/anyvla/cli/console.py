"""The console of every command: text is printed as it is, never read as markup.

Names of tasks, paths and error messages come from users and from data sets. Rich would take `[red]` in them for a
style, `[/]` for an error and `:smile:` for a picture, and a terminal would obey an escape sequence.
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
    """A rich console without markup, emoji codes and highlighting. Styles are given by `style=` or `rich.text.Text`."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Be quiet when nobody reads the messages any more. Rich would end the command, whatever it is doing."""
        if not self.stderr:
            super().on_broken_pipe()
        self.quiet = True

    def render_str(self, text: str, **options: Any) -> Text:
        """Return `text` as rich prints it, in table cells too."""
        return super().render_str(visible(text), **options)
