"""README and the pages say what is there."""

from __future__ import annotations

import re
import runpy
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fastwan import __version__, errors
from fastwan.cli import main

STAGES = ("export", "engines", "runtime", "plugins")
LABELS = ("measured", "emulated", "predicted")
FENCE = re.compile(r"^```(?:bash|console|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ANY_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`((?:export|engines|runtime|plugins|src|scripts|docs|tests|\.ci)/[\w./*-]*)`")
LINK = re.compile(r"\]\(([^)\s]+)")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="session")
def pages(root: Path) -> dict[str, str]:
    """README, CONTRIBUTING and every page under docs/, by path."""
    files = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    assert len(files) > 10
    return {file.relative_to(root).as_posix(): file.read_text() for file in files}


@pytest.fixture(scope="session")
def structure(pages: dict[str, str]) -> str:
    return pages["docs/structure.md"]


@pytest.fixture(scope="session")
def reference(pages: dict[str, str]) -> dict[str, str]:
    """Sections of the command line's reference by heading."""
    parts = re.split(r"^## (.*)\n", pages["docs/commands.md"], flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


FOLDERS = ("src", "runtime", "engines", "export", "plugins")


def commands(text: str) -> list[list[str]]:
    """Words of every `fastwan-export` line in the shell blocks of a page."""
    found = []
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "fastwan-export" in words:
                found.append(words[words.index("fastwan-export") + 1 :])
    return found


def parse(words: list[str]) -> None:
    """Parse a command line without running it."""
    assert words[0] in main.commands, f"no such command: {words[0]}"
    main.commands[words[0]].make_context(words[0], words[1:])


def options(command: click.Command) -> set[str]:
    """Long options of a command."""
    names = (name for p in command.params for name in (*p.opts, *p.secondary_opts))
    return {name for name in names if name.startswith("--")}


def rows(text: str, header: str) -> Iterator[list[str]]:
    """Cells of the rows of every table with this header line."""
    for table in re.findall(rf"^{re.escape(header)}\n\|[-:| ]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        for line in table.splitlines():
            yield [cell.strip() for cell in line.strip("|").split("|")]


def anchors(page: str) -> set[str]:
    """Anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s+", "-", heading) for heading in plain}


def test_the_pages_show_every_command(pages: dict[str, str], reference: dict[str, str]) -> None:
    shown = {words[0] for page in pages.values() for words in commands(page)}
    assert shown == set(main.commands)
    assert set(main.commands) <= reference.keys()


def test_the_readme_shows_the_way_from_checkpoint_to_video(pages: dict[str, str]) -> None:
    shown = [words[0] for words in commands(pages["README.md"])]
    assert shown == ["make-checkpoint", "build-engine", "generate"]


def test_the_commands_of_the_pages_parse(pages: dict[str, str]) -> None:
    for page in pages.values():
        for words in commands(page):
            parse(words)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("inspect bundle --json", "inspect bundle --jason"),
        ("generate bundle prompt -o a.mp4", "generate bundle prompt"),
        ("make-checkpoint --size tiny out", "make-checkpoint --size huge out"),
    ],
)
def test_a_command_that_does_not_parse_is_seen(good: str, bad: str) -> None:
    parse(shlex.split(good))
    with pytest.raises(click.UsageError):
        parse(shlex.split(bad))


def test_the_options_that_the_pages_name_exist(pages: dict[str, str]) -> None:
    known = {"--help"}.union(*(options(each) for each in (main, *main.commands.values())))
    prose = "\n".join(ANY_FENCE.sub("", page) for page in pages.values())
    named = set(re.findall(r"`(--[a-z][a-z-]*)", prose))
    assert named
    assert named <= known


@pytest.mark.parametrize("name", sorted(main.commands))
def test_the_reference_has_every_option(name: str, reference: dict[str, str]) -> None:
    # --json is told of once, for all commands.
    wanted = options(main.commands[name]) - {"--json"}
    named = set(re.findall(r"`(--[a-z][a-z-]*)", reference[name]))
    assert wanted <= named
    assert named <= options(main.commands[name])


def test_the_scripts_that_the_pages_name_exist(pages: dict[str, str], root: Path) -> None:
    named = set(re.findall(r"(?<![\w/])(?:scripts|\.ci)/[\w.-]*\w", "\n".join(pages.values())))
    assert {"scripts/quickstart.sh", "scripts/test.sh", "scripts/docs.sh", ".ci/run"} <= named
    assert [name for name in named if not (root / name).exists()] == []


def test_the_reference_lists_the_exit_codes(reference: dict[str, str]) -> None:
    listed = {int(cells[0]) for cells in rows(reference["Exit codes"], "| exit code | meaning |")}
    classes = errors.FastWanError.__subclasses__()
    assert {0, *(each.exit_code for each in classes)} <= listed


def test_the_reference_lists_the_environment_variables(
    reference: dict[str, str], root: Path, tracked: list[Path]
) -> None:
    read = set()
    for file in tracked:
        if file.suffix == ".py" and not (root / file).is_symlink():
            read |= set(re.findall(r"[\"'](FASTWAN_[A-Z_]+)[\"']", (root / file).read_text()))
        elif file.suffix == ".sh":
            read |= set(re.findall(r"\$\{?(FASTWAN_[A-Z_]+)", (root / file).read_text()))
    assert "FASTWAN_CACHE_DIR" in read
    others = set()
    for file in tracked:
        if file.suffix == ".py" and file.parts[0] in FOLDERS:
            text = (root / file).read_text()
            others |= set(re.findall(r"environ(?:\.get)?[\[(]\s*\"([A-Z_]+)\"", text))
    assert {"CI", "TENSORRT_ROOT"} <= others
    assert others <= set(re.findall(r"`([A-Z_]+)`", reference["Environment variables"]))
    listed = set(re.findall(r"`(FASTWAN_[A-Z_]+)`", reference["Environment variables"]))
    assert listed == read


def figures(text: str) -> list[tuple[str, str, str]]:
    """What, value and kind of every figure on a page; links lead elsewhere from another page."""
    found = []
    for cells in rows(text, "| what | value | kind |"):
        what, value, kind = (re.sub(r"\]\([^)]*\)", "]", cell) for cell in cells)
        found.append((what, value, kind))
    return found


def test_every_figure_has_a_label(pages: dict[str, str]) -> None:
    listed = [kind for page in pages.values() for _, _, kind in figures(page)]
    assert len(listed) > 30
    assert set(listed) == set(LABELS)


def test_the_readme_has_eight_figures_of_the_page(pages: dict[str, str]) -> None:
    shown = figures(pages["README.md"])
    assert len(shown) == 8
    assert [each for each in shown if each not in figures(pages["docs/figures.md"])] == []


def test_the_predicted_step_is_that_of_its_page(pages: dict[str, str]) -> None:
    parts = rows(pages["docs/step-cost.md"], "| part | kernels | GB | arithmetic, ms | ms |")
    sums = {cells[0]: cells[-1].strip("*") for cells in parts if cells[0].startswith("**")}
    (milliseconds,) = [total for name, total in sums.items() if "step" in name]
    (value,) = [v for what, v, _ in figures(pages["README.md"]) if "denoising step" in what]
    assert value.startswith(f"{float(milliseconds):.0f} ms;")


def test_the_changelog_has_this_version(root: Path) -> None:
    assert f"## [{__version__}]" in (root / "CHANGELOG.md").read_text()


def test_the_map_names_every_module(structure: str, tracked: list[Path]) -> None:
    named = set(PATH.findall(structure))
    modules = {
        file.as_posix()
        for file in tracked
        if file.suffix == ".py"
        and file.name != "__init__.py"
        and (file.parts[0] in STAGES or file.parts[0] == "src")
    }
    assert modules
    assert sorted(modules - named) == []


def test_the_pages_name_no_file_that_is_not_there(pages: dict[str, str], root: Path) -> None:
    for page, text in pages.items():
        named = [name for name in PATH.findall(text) if "*" not in name]
        # NAME stands for a file that is still to be written.
        named = [name for name in named if "NAME" not in name]
        assert [name for name in named if not (root / name).exists()] == [], page
    assert PATH.findall(pages["docs/structure.md"])


def test_the_glossary_is_in_order(pages: dict[str, str]) -> None:
    words = [cells[0].lower() for cells in rows(pages["docs/glossary.md"], "| word | means |")]
    assert {"region", "cadence", "segment", "recipe", "profile", "arena", "scratch"} <= set(words)
    assert words == sorted(words)


def broken_links(pages: dict[str, str], root: Path) -> list[str]:
    """Links to files that are not there, and to headings that a page does not have."""
    broken = []
    for page, text in pages.items():
        for target in LINK.findall(ANY_FENCE.sub("", text)):
            path, _, anchor = target.partition("#")
            file = (root / page).parent / path if path else root / page
            if "://" in target:
                continue
            if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
                broken.append(f"{page}: {target}")
    return broken


def test_links_lead_somewhere(root: Path, tracked: list[Path]) -> None:
    texts = {f.as_posix(): (root / f).read_text() for f in tracked if f.suffix == ".md"}
    assert broken_links(texts, root) == []


@pytest.mark.parametrize("bad", ["docs/nothing.md", "docs/tutorial.md#nothing", "#nothing"])
def test_a_link_that_leads_nowhere_is_seen(bad: str, root: Path) -> None:
    good = "[a](docs/tutorial.md#read-the-table) [b](#figures) [c](https://example.org/x#y)"
    assert broken_links({"README.md": good}, root) == []
    assert broken_links({"README.md": f"{good} [d]({bad})"}, root) == [f"README.md: {bad}"]


def test_every_picture_is_on_a_page(pages: dict[str, str], root: Path) -> None:
    pictures = {file.name for file in (root / "docs" / "images").iterdir()}
    shown = re.findall(r"images/([\w.-]+)", "\n".join(pages.values()))
    assert len(pictures) > 5
    assert pictures == set(shown)


def test_pictures_stand_alone(root: Path) -> None:
    """Drawings load nothing, say what they show, and share one style for light and dark."""
    styles = set()
    for file in sorted((root / "docs" / "images").glob("*.svg")):
        picture = ElementTree.parse(file).getroot()
        assert picture.tag == f"{SVG}svg"
        assert all((picture.findtext(f"{SVG}{name}") or "").strip() for name in ("title", "desc"))
        assert picture.find(f"{SVG}rect[@class='panel']") is not None
        assert not [e.tag for e in picture.iter() for name in e.attrib if name.endswith("href")]
        style = picture.findtext(f"{SVG}style") or ""
        assert "prefers-color-scheme: dark" in style
        assert "url(" not in style
        styles.add(style)
    assert len(styles) == 1


@pytest.mark.parametrize(
    ("elsewhere", "here"),
    [
        ('<script src="https://example.org/a.js"></script>', '<script src="a.js"></script>'),
        ('<img srcset="//example.org/a.png">', '<img srcset="a.png">'),
        ('<link rel="stylesheet" href="https://example.org">', '<a href="https://example.org">'),
    ],
)
def test_a_page_that_loads_from_elsewhere_is_seen(elsewhere: str, here: str, root: Path) -> None:
    loads = runpy.run_path(str(root / "docs" / "site" / "privacy.py"))["loads"]
    assert len(loads(elsewhere)) == 1
    assert loads(here) == []
