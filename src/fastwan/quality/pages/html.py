"""A document as one page of HTML that needs nothing beside it."""

from __future__ import annotations

from fastwan.quality.pages.document import Document

MAX_BYTES = 3_000_000
"""Largest page that is written; a larger one would be slow to open from a CI job."""


def render(document: Document) -> str:
    """The page. All text of the document is escaped; charts are trusted, they are ours."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fastwan.quality.pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html.j2").render(document=document)
