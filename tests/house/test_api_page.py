"""docs/api.md has every public name once, in its wing's table, with one mark; the pages beside it keep their form."""

import ast
import importlib
import re
import sys

import pytest
from places import DOCS, ROOT

MARKS = {"*stable*", "*provisional*", "*research*"}
DOORS = {
    "multilevel_sde": ROOT / "multilevel_sde",
    "multilevel_sde.testing": ROOT / "multilevel_sde" / "testing",
    "multilevel_diffusion": ROOT / "adapters" / "multilevel_diffusion",
    "multilevel_diffusion.diffusers": ROOT / "adapters" / "multilevel_diffusion" / "diffusers",
    "multilevel_diffusion.quality": ROOT / "adapters" / "multilevel_diffusion" / "quality",
    "multilevel_diffusion.cheap_levels": ROOT / "adapters" / "multilevel_diffusion" / "cheap_levels",
    "multilevel_diffusion.sparse": ROOT / "adapters" / "multilevel_diffusion" / "sparse",
    "multilevel_forces": ROOT / "adapters" / "multilevel_forces",
}
MODULES = {"problems": "multilevel_sde.rates.problems", "rates": "multilevel_sde.rates"}  # modules that are names
GROUND = {"ladder", "cost", "errors"}  # share one table


def wings():
    """The table that each public name belongs to, from the stubs and the wings' front doors: path -> table."""
    found = {}
    for door, folder in DOORS.items():
        stub = folder / "__init__.pyi"
        if stub.exists():
            for node in ast.parse(stub.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ImportFrom):
                    for alias in node.names:
                        wing = "forces" if door == "multilevel_forces" else (node.module or alias.name).split(".")[0]
                        path = MODULES.get(alias.name, f"{door}.{alias.name}")
                        found[path] = "ladder" if wing in GROUND else wing
        else:
            tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
            names = next(node.value for node in tree.body if isinstance(node, ast.Assign))
            found |= {f"{door}.{name}": folder.name for name in ast.literal_eval(names)}
    return found


def sections():
    """The tables of the page: anchor -> rows of (name, path, mark, line)."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    found = {}
    for part in re.split(r"^\(api-", text, flags=re.MULTILINE)[1:]:
        wing, rest = part.split(")=", 1)
        assert wing not in found, f"docs/api.md has two tables for {wing}"
        lines = [line for line in rest.splitlines() if line.startswith("|")]
        assert lines[:2] == ["| name | mark | what it is |", "|---|---|---|"]
        rows = []
        for line in lines[2:]:
            name, mark, what = (cell.strip() for cell in line.strip("|").split("|"))
            label = re.fullmatch(r"\{(?:class|func|data|exc|mod)\}`(\w+) <([\w.]+)>`", name)
            assert label, f"docs/api.md has a row that is no link to a name: {line}"
            rows.append((*label.groups(), mark, what))
        found[wing] = rows
    return found


WINGS, SECTIONS = wings(), sections()
ROWS = [row for rows in SECTIONS.values() for row in rows]


def test_every_public_name_stands_once_in_its_wings_table():
    listed = [(path, wing) for wing, rows in SECTIONS.items() for _, path, _, _ in rows]
    missing, extra = sorted(set(WINGS) - {path for path, _ in listed}), sorted({p for p, _ in listed} - set(WINGS))
    assert not missing, f"docs/api.md lacks {', '.join(missing)}; give each a line and a mark in its wing's table"
    assert not extra, f"docs/api.md lists {', '.join(extra)}, which no front door gives"
    assert len(listed) == len(WINGS), "docs/api.md lists a name twice"
    wrong = [f"{path} under {wing}, not {WINGS[path]}" for path, wing in listed if wing != WINGS[path]]
    assert not wrong, f"docs/api.md has {'; '.join(wrong)}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_a_line_has_one_mark_and_one_sentence(row):
    name, path, mark, what = row
    assert path.split(".")[-1] == name
    assert mark in MARKS, f"{path} is marked {mark!r}; take one of {', '.join(sorted(MARKS))}"
    assert re.fullmatch(r"[A-Z].*\.", what), f"the line of {path} is no sentence"
    assert len(what) <= 100


@pytest.mark.parametrize("door", DOORS)
def test_the_stub_is_what_the_package_gives(door):
    if door.endswith(("diffusers", "forces")):
        pytest.importorskip("diffusers" if door.endswith("diffusers") else "ase")
    given = {MODULES.get(name, f"{door}.{name}") for name in importlib.import_module(door).__all__}
    assert given == {path for path in WINGS if path.rpartition(".")[0] == door or path in given}


@pytest.mark.parametrize("wing", SECTIONS)
def test_every_line_has_a_full_description(wing):
    page = (DOCS / "reference" / f"{wing}.md").read_text(encoding="utf-8")
    package = re.search(r"currentmodule:: (\S+)", page)[1]
    names = re.findall(r"auto(?:class|function|data|exception):: (\w+)", page)
    described = {f"{package}.{name}" for name in names} | (set(re.findall(r"automodule:: (\S+)", page)))
    assert {path for _, path, _, _ in SECTIONS[wing]} <= described
    assert len(names) == len(SECTIONS[wing]) - sum(name in MODULES for name, *_ in SECTIONS[wing])
    assert re.search(rf"^{wing}$", (DOCS / "reference" / "index.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_marks_are_explained():
    page = (DOCS / "stability.md").read_text(encoding="utf-8")
    assert all(re.search(rf"^\| {re.escape(mark)} \|", page, re.MULTILINE) for mark in MARKS)


def test_what_is_research_is_research():
    marks = {path: mark for _, path, mark, _ in ROWS}
    research = {path for path, mark in marks.items() if mark == "*research*"}
    assert all(path in research for path in WINGS if WINGS[path] in ("sparse", "cheap_levels"))
    for name in ("poisson_plan", "PoissonPlan", "learn", "LearnedSchedule", "phase_plans", "PhasePlans", "Offload"):
        assert f"multilevel_sde.{name}" in research


def test_the_glossary_has_fifteen_words_of_one_or_two_sentences():
    page = (DOCS / "glossary.md").read_text(encoding="utf-8")
    body = re.search(r"```\{glossary\}\n(.*?)```", page, re.DOTALL)[1]
    definitions = re.findall(r"(?:^\S.*\n)+((?:^  .*\n)+)", body, re.MULTILINE)
    assert len(definitions) == 15
    for text in definitions:
        assert 1 <= len(re.findall(r"[.)](?=\s)", text)) <= 2, text


def test_the_index_names_every_page():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = re.findall(r"```\{toctree\}\n:caption: (.*)\n:hidden:\n\n((?:[\w/]+\n)+)```", index)
    assert [caption for caption, _ in trees] == ["Start", "Choose", "How it works", "Reference", "Measured"]
    named = [page for _, pages in trees for page in pages.split()]
    assert sorted(named) == sorted({file.stem for file in DOCS.glob("*.md")} - {"index"} | {"reference/index"})


def test_a_page_that_loads_from_elsewhere_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    check = importlib.import_module("self_contained").loads_from_elsewhere
    (tmp_path / "a.html").write_text(
        '<link rel="next" href="https://a.example/b"><a href="https://a.example">for people</a><img src="b.png">'
        '<style>p { background: url(data:image/png;base64,AA//BB) }</style>'
    )  # fmt: skip
    assert check(tmp_path) == []
    (tmp_path / "b.html").write_text(
        '<script src="https://a.example/x.js"></script><link rel="stylesheet" href="//a.example/x.css">'
        '<img srcset="//a.example/x.png 2x"><style>@import "https://a.example/y.css";</style>'
    )
    (tmp_path / "c.css").write_text("@font-face { src: url('https://a.example/z.woff2') }")
    assert [sentence.split(" loads ")[1].rpartition("/")[2] for sentence in check(tmp_path)] == [
        "x.js", "x.css", "x.png", "y.css", "z.woff2",
    ]  # fmt: skip
