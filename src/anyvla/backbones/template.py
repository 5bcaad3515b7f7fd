"""How the tokens of a step are written, as texts around its images and its instruction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """How the tokens of a step are written. In texts, `{bos}` stands for the tokenizer's BOS token."""

    opening: str = "{bos}"  # opens a sequence, once
    before_image: str = ""
    row_end: str = ""  # between the rows of an image's tokens
    after_image: str = ""
    text: str = "\n{prompt}"  # follows the images of a step

    def filled(self, prompt: str, bos: str) -> Template:
        """Return the template with everything in its place but the instruction."""
        text = self.text.replace("{prompt}", prompt)
        return Template(
            *(part.replace("{bos}", bos) for part in (self.opening, self.before_image, self.row_end)),
            *(part.replace("{bos}", bos) for part in (self.after_image, text)),
        )

    @property
    def around(self) -> str:
        """All that is written around an instruction."""
        return " ".join((self.opening, self.before_image, self.row_end, self.after_image, self.text))

    def written(self, pieces: list[str], apart: bool) -> list[str]:
        """Return the texts of a step that are tokenized one after another, for an instruction in pieces.

        `apart`: no piece is joined to the text around the instruction.
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
