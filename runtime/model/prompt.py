"""What a prompt has to be before any tokenizer sees it."""

from __future__ import annotations

import unicodedata

from fastwan.errors import BadInput, shown

LONGEST_PROMPT = 100_000
"""Characters. The model reads 512 tokens; beyond this a file was passed by mistake."""

_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Unicode's categories of control and format characters and of white space."""


def check_prompt(prompt: object, name: str = "prompt") -> None:
    """Refuse a prompt that says nothing or that no tokenizer can read.

    Args:
        name: of the argument, for the error.

    Raises:
        BadInput: not a string, blank, not Unicode, or longer than `LONGEST_PROMPT`.
    """
    if not isinstance(prompt, str):
        raise BadInput(
            f"{name} is {shown(prompt)}, not one string",
            where=name,
            fix="give a string, or call the pipeline with a list of strings",
        )
    if len(prompt) > LONGEST_PROMPT:
        raise BadInput(
            f"{name} has {len(prompt):,} characters, {LONGEST_PROMPT:,} at most",
            where=name,
            fix="shorten it; the model reads its first tokens only",
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{name} is not valid text: character {error.start + 1} is half of a surrogate pair, "
            "or a byte that is not UTF-8",
            where=name,
            fix="pass it in UTF-8",
        ) from error
    if all(unicodedata.category(each) in _UNSEEN for each in prompt):
        raise BadInput(f"{name} is blank", where=name, fix="describe the video")
