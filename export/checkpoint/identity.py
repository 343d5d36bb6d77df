"""Which published model a checkpoint is: what its names say, and whether its shape agrees.

Two kinds of names are told apart. A checkpoint's own: what the user gave, its folder, the title of
its model card. And those of what it was made from: `_name_or_path` in a configuration and
``base_model`` of the card; a distilled model is made from one that is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fastwan.config import DEFAULT_MODEL, MODELS, DiTConfig
from fastwan.errors import BadInput
from fastwan.export.checkpoint.config_file import ConfigFile
from fastwan.export.checkpoint.model_index import MODEL_INDEX
from fastwan.files import open_regular
from fastwan.tables import lookup

CARD = "README.md"

# Published models that are no rows of MODELS: taking one for another model would build engines for
# weights that were made otherwise.
_OTHERS = (
    "FastWan2.1-T2V-1.3B", "FastWan2.1-T2V-14B",
    "FastWan2.2-TI2V-5B", "TurboWan2.1-T2V-1.3B", "TurboWan2.1-T2V-14B", "Wan2.1-T2V-14B",
    "Wan2.1-I2V-14B", "Wan2.1-VACE-1.3B", "Wan2.1-Fun-1.3B", "Wan2.2-T2V-A14B", "Wan2.2-I2V-A14B",
    "Wan2.2-TI2V-5B",
)  # fmt: skip
_PARENTS = ("Wan2.1-T2V-1.3B", "FastWan2.1-T2V-1.3B")
"""What distilled models of other kinds are made from."""

_SAME = re.compile(r"([-_. ]*(diffusers|bf16|fp16|fp32|safetensors))*", re.IGNORECASE)
_CARD_BYTES = 1 << 20


class Claim(NamedTuple):
    """A name that a checkpoint gives itself or what it was made from, and where it stands."""

    where: str
    text: str


class Match(NamedTuple):
    """A published model that a claim names; not `exact` with something before or behind it."""

    claim: Claim
    model: str
    exact: bool


def own_claims(source: str, root: Path) -> list[Claim]:
    """Names of the checkpoint itself: what the user gave, its folder or file, its card's title."""
    path = root.absolute()
    kind = "folder" if root.is_dir() else "file"
    claims = [Claim("--checkpoint", source.partition("@")[0])]
    for each in dict.fromkeys((path, root.resolve())):
        # In the hub's cache the model's name is two folders up: models--owner--name/snapshots/hash.
        name = each.parent.parent.name if each.parent.name == "snapshots" else each.name
        claims.append(Claim(f"the {kind}'s name", name.rpartition("--")[2]))
    if root.is_dir():
        title = re.search(r"^# +(\S.*?) *$", _card(root)[1], re.MULTILINE)
        if title:
            claims.append(Claim(f"the title of {CARD}", title[1]))
    return claims


def origin_claims(root: Path, index_origin: str, configs: Iterable[Path]) -> list[Claim]:
    """Names of what the checkpoint was made from.

    Args:
        index_origin: ``_name_or_path`` of ``model_index.json``.
        configs: configuration files that may have another.
    """
    claims = [Claim(MODEL_INDEX, index_origin)]
    for path in configs:
        if path.is_file():
            text = ConfigFile(path).fields.get("_name_or_path")
            where = path.relative_to(root).as_posix()
            claims += [Claim(where, text)] if isinstance(text, str) else []
    claims += [Claim(f"base_model of {CARD}", text) for text in _base_models(_card(root)[0])]
    return claims


def tell_model(own: Iterable[Claim], origins: Iterable[Claim], notes: list[str]) -> str:
    """Row of `fastwan.config.MODELS` that the names of a checkpoint tell.

    Args:
        own: of the checkpoint itself; a card's title counts only where it is a name alone.
        origins: of what it was made from.
        notes: told where the name is assumed.

    Raises:
        BadInput: another published model, or names that contradict each other.
    """
    found = [match for match in _matches(own) if match.exact or "title" not in match.claim.where]
    made_from = list(_matches(origins))
    if not found:
        # A parent tells nothing: distilled models and others are made from it.
        found = [match for match in made_from if match.model not in _PARENTS]
        if made_from and not found:
            raise BadInput(
                f"{made_from[0].claim.where} says that this was made from {made_from[0].model}, "
                "and nothing says whether it was distilled",
                fix="pass --model " + " or ".join(MODELS),
            )
        if not found:
            notes.append(
                f"assuming the model {DEFAULT_MODEL}, since the checkpoint names none: "
                "--model NAME says which"
            )
            return DEFAULT_MODEL
        notes.append(f"assuming the model {found[0].model}, which {found[0].claim.where} names")
    first = found[0]
    contrary = next((match for match in found if match.model != first.model), None) or next(
        (match for match in made_from if match.model not in (first.model, *_PARENTS)), None
    )
    if first.model in MODELS and contrary is not None:
        raise BadInput(
            f"{first.claim.where} says {first.model}, {contrary.claim.where} says {contrary.model}",
            fix="pass --model " + " or ".join(MODELS),
        )
    if first.model not in MODELS:
        raise BadInput(
            f"model {first.model} is not supported",
            where=first.claim.where,
            fix="use " + " or ".join(MODELS) + ", or say with --model that it is made like one",
        )
    if not any(match.exact for match in found):
        notes.append(f"assuming that {first.claim.text!a:.120} is made like {first.model}")
    return first.model


def overruled_names(own: Iterable[Claim], origins: Iterable[Claim], model: str) -> list[str]:
    """What the user's ``--model`` overrules in the names of a checkpoint, as notes."""
    matches = [*_matches(own), *(each for each in _matches(origins) if each.model not in _PARENTS)]
    return [
        f"built as {model}, though {match.claim.where} says {match.model}"
        for match in matches
        if match.model != model
    ][:1]


def check_shape(config: DiTConfig, model: str, others: Iterable[DiTConfig]) -> None:
    """Refuse a transformer that has not the shape of the model that it is said to be.

    Args:
        others: shapes that are taken under any name, those of synthetic checkpoints.

    Raises:
        BadInput: the message gives both shapes.
    """
    published = lookup(MODELS, model).dit
    if not any(_size(config) == _size(each) for each in (published, *others)):
        raise BadInput(
            f"transformer has {_size(config)}, {model} has {_size(published)}",
            where="transformer/config.json",
            fix=f"if it is made like that model nevertheless, pass --model {model}",
        )


def _size(config: DiTConfig) -> str:
    return (
        f"{config.num_layers} layers, {config.num_heads} heads, ffn_dim {config.ffn_dim}, "
        f"text_dim {config.text_dim} and freq_dim {config.freq_dim}"
    )


def _matches(claims: Iterable[Claim]) -> Iterator[Match]:
    for claim in claims:
        for name in sorted((*MODELS, *_OTHERS), key=len, reverse=True):
            text = re.split(r"[/\\]", claim.text.rstrip("/\\"))[-1]
            found = re.search(_pattern(name), text, re.IGNORECASE)
            if found:
                exact = not found.start() and _SAME.fullmatch(text[found.end() :]) is not None
                yield Match(claim, name, exact)
                break


def _pattern(name: str) -> str:
    """Files of other tools write a name with underscores: Wan2_1-T2V-1_3B, wan2.1_t2v_1.3B."""
    parts = [re.escape(part) for part in re.split(r"[-.]", name)]
    separators = [f"[{re.escape(each)}_]" for each in re.findall(r"[-.]", name)]
    body = "".join(part + each for part, each in zip(parts, [*separators, ""], strict=True))
    return rf"(?<![a-z0-9]){body}(?![a-z0-9])"


def _card(root: Path) -> tuple[str, str]:
    """Front matter and text of a model card; empty where there is none that can be read."""
    try:
        with open_regular(root / CARD) as stream:
            text = stream.read(_CARD_BYTES).decode("utf-8", "replace")
    except (OSError, BadInput):
        return "", ""
    head = re.match(r"---\r?\n(.*?)\r?\n---[ \t]*\r?\n", text, re.DOTALL)
    return (head[1], text[head.end() :]) if head else ("", text)


def _base_models(front_matter: str) -> list[str]:
    """Values of ``base_model``, given as a scalar, a list in brackets or a list of lines."""
    block = re.search(r"^base_model:(.*(?:\n[ \t-].*)*)", front_matter, re.MULTILINE)
    return re.findall(r"[\w./-]*\w/[\w.-]+|[\w.-]*\w[\w.-]*", block[1]) if block else []
