"""The page in Chromium, as somebody uses it: type, submit, watch, cancel, reload, on a phone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from testkit.browser_tab import Tab, open_tab
from testkit.fake_player import until
from testkit.picture_player import Listening, PicturePlayer, listening

pytest.importorskip("av", reason="PyAV is not installed")

FOX = "A red fox walks through fresh snow at dawn, low sun behind the pines"
STATUS = "document.getElementById('status').textContent"
VIDEO = "document.getElementById('video')"
CANCEL_SHOWN = "!document.getElementById('cancel').hidden"
AXE = "FASTWAN_AXE"
"""Environment variable: axe.min.js of the package axe-core."""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def player() -> PicturePlayer:
    return PicturePlayer(guided=True)


@pytest.fixture
def server(tmp_path: Path, player: PicturePlayer, tab: Tab) -> Iterator[Listening]:
    with listening(tmp_path / "videos", player) as server:
        tab.size(1280, 900)
        tab.open(server.address)
        tab.until("document.getElementById('model').textContent")
        yield server
        tab.open("about:blank")


def says(tab: Tab, text: str) -> None:
    """Wait until the page's status is a text."""
    tab.until(f"{STATUS} === {text!r}")


def ask(tab: Tab, prompt: str, *, seed: int | None = None) -> str:
    """Type a prompt and submit it with the keyboard; the job's id."""
    before = tab.js("location.hash")
    tab.js("document.getElementById('prompt').value = ''")
    tab.js("document.getElementById('prompt').focus()")
    tab.type(prompt)
    if seed is not None:
        tab.js("document.getElementById('seed').focus()")
        tab.type(str(seed))
    tab.key("Enter", ctrl=True)
    tab.until(f"location.hash !== {before!r} && location.hash.length > 1")
    return str(tab.js("location.hash.slice(1)"))


def test_a_video_plays_while_it_is_made(server: Listening, tab: Tab, player: PicturePlayer) -> None:
    tab.screenshot("page-empty")
    player.gate.clear()
    player.hold()
    job_id = ask(tab, FOX, seed=7)
    says(tab, "Being made")
    assert tab.js(CANCEL_SHOWN)
    player.gate.set()
    says(tab, "All steps are done")
    parts = "[...document.querySelectorAll('#progress span')]"
    assert tab.js(f"{parts}.map(part => part.style.getPropertyValue('--done'))") == [
        "1",
        "1",
        "1",
        "0",
    ]
    tab.screenshot("page-steps")
    server.until_watched(job_id)
    player.frames.release(9)
    says(tab, "The first frame is there")
    tab.until(f"{VIDEO}.readyState >= 2 && {VIDEO}.buffered.length === 1")
    # Eight of seventeen frames, as a frame leaves with the one behind it.
    tab.until(f"Math.abs({VIDEO}.buffered.end(0) - 8 / 16) < 0.01")
    assert tab.text("#frames") == "9 of 17 frames"
    tab.until(f"{VIDEO}.currentTime > 0.2")
    tab.screenshot("page-frames")
    player.let_go()
    tab.until(f"{STATUS}.startsWith('Made in ')")
    tab.until(f"Math.abs({VIDEO}.duration - 17 / 16) < 0.01")
    assert tab.js(f"[{VIDEO}.videoWidth, {VIDEO}.videoHeight, {VIDEO}.error]") == [160, 96, None]
    # The same element goes on: the file was not loaded in its place.
    assert tab.js(f"{VIDEO}.src.startsWith('blob:')")
    assert not tab.js(CANCEL_SHOWN)
    assert tab.text("#caption") == FOX
    assert "7" in tab.text("#facts")
    assert tab.js("document.getElementById('download').getAttribute('href')").endswith(
        f"{job_id}/content"
    )
    assert tab.js("document.title").startswith("Made in ")
    tab.screenshot("page-done")
    assert tab.problems == []
    assert {each.split("/")[2] for each in tab.requested if each.startswith("http")} == {
        server.address.removeprefix("http://")
    }


def test_a_reload_keeps_everything(server: Listening, tab: Tab, player: PicturePlayer) -> None:
    first = ask(tab, FOX, seed=1)
    tab.until(f"{STATUS}.startsWith('Made in ')")
    player.gate.clear()
    second = ask(tab, "Waves at night", seed=2)
    says(tab, "Being made")
    tab.reload()
    says(tab, "Being made")
    assert tab.js("location.hash.slice(1)") == second
    cards = "[...document.querySelectorAll('#gallery .prompt')].map(p => p.textContent)"
    assert tab.js(cards) == ["Waves at night", FOX]
    player.gate.set()
    tab.until(f"{STATUS}.startsWith('Made in ')")
    # A card leads to its video, also from the keyboard.
    tab.js(f"document.querySelector('#gallery a[href=\"#{first}\"]').focus()")
    tab.key("Enter")
    tab.until(f"document.getElementById('caption').textContent === {FOX!r}")
    tab.until(f"{VIDEO}.readyState >= 2")
    assert tab.js(f"{VIDEO}.src") == f"{server.address}/v1/videos/{first}/content"
    selected = (
        "[...document.querySelectorAll('#gallery a[aria-current]')].map(a => a.hash.slice(1))"
    )
    assert tab.js(selected) == [first]
    tab.reload()
    tab.until(f"document.getElementById('caption').textContent === {FOX!r}")
    assert tab.js(cards) == ["Waves at night", FOX]
    # Its picture is the video's own.
    picture = f"document.querySelector('#gallery a[href=\"#{first}\"] video')"
    tab.until(f"{picture}.readyState >= 2 && {picture}.videoWidth === 160")
    tab.screenshot("page-gallery")
    assert tab.problems == []


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_what_is_being_made_can_be_cancelled(
    server: Listening, tab: Tab, player: PicturePlayer, how: str
) -> None:
    player.gate.clear()
    job_id = ask(tab, FOX)
    says(tab, "Being made")
    if how == "Escape":
        tab.key("Escape")
    else:
        tab.js("document.getElementById('cancel').focus()")
        tab.key("Enter")
    says(tab, "Cancelled")
    with httpx2.Client(base_url=server.address) as client:
        assert until(client, job_id, "cancelled")  # type: ignore[arg-type]
    assert not tab.js(CANCEL_SHOWN)
    assert tab.text("#gallery .picture") == "Cancelled"
    # What waited is served, and nothing of the cancelled one is left on the stage.
    player.gate.set()
    ask(tab, "Waves at night")
    tab.until(f"{STATUS}.startsWith('Made in ')")


def test_a_place_in_the_queue_is_told(server: Listening, tab: Tab, player: PicturePlayer) -> None:
    player.gate.clear()
    ask(tab, "First")
    says(tab, "Being made")
    ask(tab, "Second")
    says(tab, "Waiting: it is next")
    ask(tab, "Third")
    says(tab, "Waiting: 1 video before this one")
    tab.screenshot("page-queue")
    player.gate.set()
    tab.until(f"{STATUS}.startsWith('Made in ')")


def test_errors_are_told_in_words(server: Listening, tab: Tab, player: PicturePlayer) -> None:
    error = "document.getElementById('error').textContent"
    tab.js("document.getElementById('prompt').focus()")
    tab.type("x" * 5000)
    tab.key("Enter", ctrl=True)
    assert "5,000 characters, 4,096 at most" in tab.until(error)
    player.fault = RuntimeError("the GPU has gone")
    ask(tab, FOX)
    says(tab, "It failed: RuntimeError: the GPU has gone")
    assert tab.js(error) == ""
    tab.screenshot("page-failed")


def test_a_server_that_has_gone_is_told(tmp_path: Path, tab: Tab, player: PicturePlayer) -> None:
    with listening(tmp_path / "videos", player) as server:
        tab.size(1280, 900)
        tab.open(server.address)
        tab.until("document.getElementById('model').textContent")
    tab.js("document.getElementById('prompt').focus()")
    tab.type(FOX)
    tab.key("Enter", ctrl=True)
    tab.until("document.getElementById('error').textContent.includes('cannot be reached')")


def test_a_video_can_be_used_again_and_deleted(
    server: Listening, tab: Tab, player: PicturePlayer
) -> None:
    job_id = ask(tab, FOX, seed=11)
    tab.until(f"{STATUS}.startsWith('Made in ')")
    for field in ("prompt", "seed"):
        tab.js(f"document.getElementById('{field}').value = ''")
    tab.js("document.getElementById('again').click()")
    fields = "['prompt', 'seed'].map(id => document.getElementById(id).value)"
    assert tab.js(fields) == [FOX, "11"]
    tab.js("document.getElementById('remove').click()")
    tab.until("document.querySelectorAll('#gallery li').length === 0")
    assert tab.js("[location.hash, document.getElementById('about').hidden]") == ["", True]
    assert httpx2.get(f"{server.address}/v1/videos/{job_id}").status_code == 404


def test_a_token_is_asked_for_and_kept_in_the_tab(
    tmp_path: Path, tab: Tab, player: PicturePlayer
) -> None:
    with listening(tmp_path / "videos", player, tokens=("alpha-alpha-alpha",)) as server:
        tab.size(1280, 900)
        tab.open(server.address)
        tab.until("document.getElementById('ask').open")
        tab.screenshot("page-token")
        tab.key("Escape")
        assert tab.js("document.getElementById('ask').open")
        for token in ("wrong", "alpha-alpha-alpha"):
            tab.js("document.getElementById('token').value = ''")
            tab.js("document.getElementById('token').focus()")
            tab.type(token)
            tab.key("Enter")
            if token == "wrong":
                tab.until("document.getElementById('token-error').textContent")
        tab.until("!document.getElementById('ask').open")
        ask(tab, FOX)
        tab.until(f"{STATUS}.startsWith('Made in ')")
        tab.reload()
        tab.until(f"{STATUS}.startsWith('Made in ')")
        # No element can send a token, so that the page loads the file.
        tab.until(f"{VIDEO}.readyState >= 2")
        assert tab.js(f"{VIDEO}.src.startsWith('blob:')")
        tab.js("sessionStorage.clear()")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(server: Listening, tab: Tab, player: PicturePlayer, dark: bool) -> None:
    tab.size(360, 740, phone=True, dark=dark)
    ask(tab, f"{FOX} {'unbroken' * 20}", seed=3)
    tab.until(f"{STATUS}.startsWith('Made in ')")
    tab.until(f"{VIDEO}.readyState >= 2")
    assert tab.js("document.documentElement.scrollWidth") == 360
    small = """[...document.querySelectorAll('button, .button, input, select, textarea')]
        .filter(e => e.offsetParent).map(e => e.getBoundingClientRect())
        .filter(box => box.height < 44 || box.right > 360).length"""
    assert tab.js(small) == 0
    lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    assert (tab.js(lightness) < 100) == dark
    tab.screenshot(f"page-phone-{'dark' if dark else 'light'}")


def test_everything_is_reached_with_the_tab_key(
    server: Listening, tab: Tab, player: PicturePlayer
) -> None:
    job_id = ask(tab, FOX)
    tab.until(f"{STATUS}.startsWith('Made in ')")
    tab.reload()
    tab.until(f"{STATUS}.startsWith('Made in ')")
    reached = []
    for _ in range(24):
        tab.key("Tab")
        reached.append(tab.js("document.activeElement.id || document.activeElement.hash"))
    form = ["#prompt", "prompt", "shape", "sampler", "seed", "make"]
    stage = ["video", "download", "again", "remove"]
    places = [reached.index(each) for each in [*form, *stage, f"#{job_id}"]]
    assert places == sorted(places)


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_barrier(
    server: Listening, tab: Tab, player: PicturePlayer, dark: bool
) -> None:
    if AXE not in os.environ:
        pytest.skip(f"npm pack axe-core, and set {AXE} to its axe.min.js")
    tab.size(1280, 900, dark=dark)
    script = Path(os.environ[AXE]).read_text()
    tab.js(f"(() => {{ {script} }})()")
    run = "axe.run().then(found => found.violations.map(v => [v.id, v.nodes.map(n => n.html)]))"
    assert tab.js(run) == []
    player.gate.clear()
    ask(tab, FOX)
    says(tab, "Being made")
    assert tab.js(run) == []
    player.gate.set()
    tab.until(f"{STATUS}.startsWith('Made in ')")
    tab.until(f"{VIDEO}.readyState >= 2")
    assert tab.js(run) == []
