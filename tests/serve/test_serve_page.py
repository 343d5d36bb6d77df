"""The page's files: sent with a strict policy, and asking for nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import fastwan.serve
from fastwan.serve.routes_page import page_files
from testkit.fake_player import serving

PAGE = Path(fastwan.serve.__file__).parent / "page"


@pytest.mark.parametrize("name", ["", *sorted(f"page/{each.name}" for each in PAGE.iterdir())])
def test_a_file_is_sent_as_it_is_with_a_strict_policy(client: TestClient, name: str) -> None:
    answer = client.get(f"/{name}")
    path = PAGE / (name.removeprefix("page/") or "index.html")
    assert (answer.status_code, answer.content) == (200, path.read_bytes())
    policy = dict(
        each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert set(policy.values()) == {"'none'", "'self'", "'self' blob:"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    again = client.get(f"/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["secret.txt", "..%2Froutes_page.py", "%2e%2e/%2e%2e/errors.py", "app.js/", "App.js"]
)
def test_there_are_no_other_files(client: TestClient, name: str) -> None:
    answer = client.get(f"/page/{name}", follow_redirects=False)
    assert answer.status_code in (404, 307)
    assert b"import" not in answer.content


def test_the_page_is_for_who_has_no_token_yet(tmp_path: Path) -> None:
    with serving(tmp_path / "videos", tokens=("alpha-alpha-alpha",)) as client:
        assert client.get("/").status_code == 200
        assert client.get("/page/app.js").status_code == 200
        assert client.get("/v1/models").status_code == 401


def test_its_files_name_no_other_place_and_hold_nothing_inline() -> None:
    files = {name: file.body.decode() for name, file in page_files().items()}
    assert {"index.html", "app.js", "style.css"} <= files.keys()
    assert len(files) == len(list(PAGE.iterdir()))
    for name, text in files.items():
        found = re.findall(r"(?:https?:)?//[a-z][\w.-]*\.[a-z]{2,}[^\s\"')]*", text)
        # The name of a vocabulary, which nobody loads.
        assert [each for each in found if each != "http://www.w3.org/2000/svg"] == [], name
    page = files["index.html"]
    assert re.findall(r"<script(?![^>]* src=)|<style| on\w+=| style=", page) == []
    for script in (text for name, text in files.items() if name.endswith(".js")):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|\beval\b|document\.write", script
        )
