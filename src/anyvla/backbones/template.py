"""The texts around the images and the instruction of a step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """The texts of a step. `{bos}` is replaced by the tokenizer's BOS token."""

    opening: str = "{bos}"  # opens a sequence, once
    before_image: str = ""
    row_end: str = ""  # between the rows of an image's tokens
    after_image: str = ""
    text: str = "\n{prompt}"  # follows the images of a step

    def fill(self, prompt: str, bos: str) -> Template:
        """Return the template with everything inserted except the instruction."""
        parts = vars(self) | {"text": self.text.replace("{prompt}", prompt)}
        return Template(**{name: part.replace("{bos}", bos) for name, part in parts.items()})

    @property
    def around(self) -> str:
        """All texts around an instruction."""
        return " ".join(vars(self).values())

    def insert(self, pieces: list[str], apart: bool) -> list[str]:
        """Insert an instruction in pieces and return the texts that are tokenized one after another.

        `apart`: keep the pieces separate from the text around the instruction.
        """
        first, *rest = self.text.split("{instruction}")
        if apart:
            return [first, *(text for part in rest for text in (*pieces, part))]
        texts = [first]
        for part in rest:
            texts[-1] += pieces[0]
            texts += pieces[1:]
            texts[-1] += part
        return texts
