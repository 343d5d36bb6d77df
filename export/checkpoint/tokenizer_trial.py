"""Load a tokenizer and encode prompts with it, in a process of its own: the library can abort.

Run as a script: ``tokenizer.json`` on stdin, text length and the end token as arguments, one JSON
object on stdout. Imports nothing of this package, so that it starts at once.
"""

from __future__ import annotations

import json
import sys

PROMPTS = (
    "",
    "a red fox",
    "  a   red\tfox\r\n",
    "Ein Füchschen läuft über die Straße, 42 % schneller - l'été, señor?",
    "一只红色的狐狸在雪地里奔跑。",
    "ثعلب أحمر يركض 🦊🏃‍♀️ \u200b\ufeff",
    "\x01\x07\x1b[31m\x7f",
    "<pad> </s> <unk> <extra_id_0> &amp;",
    "fox " * 2000,
    "x" * 5000,
)
"""What people type, and what they paste by accident."""

_ADDRESS_SPACE = 8 << 30


def trial(text_length: int, end: str) -> dict[str, object]:
    """What a tokenizer does.

    Returns:
        ``ids`` of every prompt and ``bare`` ids without what is added to it; id of the ``end``
        token; ``largest`` id that it can give; tokens that are matched before the text is split,
        by id, as ``added``.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(sys.stdin.buffer.read())
    tokenizer.enable_truncation(max_length=text_length)
    tokenizer.no_padding()
    added = tokenizer.get_added_tokens_decoder()
    return {
        "end": tokenizer.token_to_id(end),
        "ids": [tokenizer.encode(prompt).ids for prompt in PROMPTS],
        "bare": [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in PROMPTS],
        "largest": max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0),
        "added": {str(number): token.content for number, token in added.items()},
    }


def limit() -> None:
    """No core file, and no more memory than any tokenizer needs."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = _ADDRESS_SPACE if hard == resource.RLIM_INFINITY else min(hard, _ADDRESS_SPACE)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def main() -> None:
    limit()
    found: dict[str, object]
    try:
        found = trial(int(sys.argv[1]), sys.argv[2])
    except (KeyboardInterrupt, ModuleNotFoundError):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        found = {"error": str(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
