"""The words of the house: no "dear" for expensive, and at most one number in a sentence of a page.

Numbers are for tables, formulas and code. `PAGES` lists the pages that obey the second rule; a page that is rewritten
joins it. A range is two numbers.
"""

import re

import pytest
from places import BENCHMARKS, DOCS, EXAMPLES, ROOT

PAGES = [
    "README.md",
    "benchmarks/README.md",
    *(
        f"docs/{name}.md"
        for name in (
            *("index", "start", "choosing", "glossary", "stability", "api", "architecture", "testing"),
            *("expectations", "from_torchsde", "from_diffrax", "from_pymlmc"),
            *("demo", "samplers", "diffusers", "edm", "one_model", "editing", "scale", "placement", "forces"),
            *(
                "pilot",
                "training",
                "gradients",
                "theory",
                "learning",
                "poisson",
                "quality",
                "rates",
                "orders",
                "benchmarking",
                "langevin",
                "integral_drift",
            ),
        )
    ),
]
WRITTEN = [
    *(path for path in [ROOT / "README.md", *DOCS.rglob("*.md")] if path.name != "changelog.md"),
    *(path for top in (BENCHMARKS, EXAMPLES) for pattern in ("*.py", "*.md") for path in top.rglob(pattern)),
    *(path for top in ("multilevel_sde", "adapters") for path in (ROOT / top).rglob("*.py")),
]
DEAR = re.compile(r"\b(dear|dearer|dearest)\b", re.IGNORECASE)

NOT_PROSE = [
    r"```.*?```",  # code, and directives such as a table of contents
    r"<!--.*?-->",
    r"^\s*\|.*$",  # tables
    r"^ {4,}.*$",  # code by indentation; text in lists has two spaces
    r"\$\$.*?\$\$",
]
NOT_NUMBERS = [
    r"`[^`]*`",
    r"\]\([^)]*\)",  # where a link goes
    r"https?://\S+",
    r"\b\d{4}-\d\d-\d\d\b",  # dates, and the years of references
    r"(?<=[\w.),] )(19\d\d|20[0-3]\d)(?=[),:;.]| \()",
    r"arXiv[ :]\d+\.\d+",
    r"\b(Python|torch|torchao|numpy|version|format) \d+(\.\d+)*",  # versions
    r"\d+( ?x ?\d+)+",  # 8x8, 64x64x3, 512 x 256
    r"\b[Ll]evels? \d+((,| and|, and| or| to) \d+)*",  # the names of levels
    r"\bSA-Solver \d/\d",
    r"\d+(/T|-bit|-norm)\b",
]
PLAIN_NUMBER = re.compile(
    r"\$[-\d.,\s{}^]*\d(\s*\\(cdot|times|,)[-\d.,\s{}^]*)*\$"
)  # in a formula and no more than that
FORMULA = re.compile(r"\$[^$]+\$")
NUMBER = re.compile(r"(?<![\w.])\d+([.,/]\d+)*(e-?\d+)?(x\b|%|(?![\w]))")
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!al\.)(?<!vs\.)[\"')*_]*\s+(?=[\"'(*_`\[$]*[A-Z0-9`$\[])")
PARAGRAPH_END = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |#|!\[))")


def sentences(text: str) -> list[str]:
    """The sentences of a page, without what is no prose."""
    for pattern in NOT_PROSE:
        text = re.sub(pattern, "\n\n", text, flags=re.DOTALL if "?" in pattern else re.MULTILINE)
    found = []
    for paragraph in PARAGRAPH_END.split(text):
        paragraph = re.sub(r"^(?:[-*]|\d+\.|#+)\s+", "", " ".join(paragraph.split()))
        found += [sentence for sentence in SENTENCE_END.split(paragraph) if sentence]
    return found


def numbers(sentence: str) -> list[str]:
    """The numbers that a reader meets in a sentence: not those of code, links, dates, versions, names and formulas."""
    for pattern in NOT_NUMBERS:
        sentence = re.sub(pattern, " name ", sentence)
    sentence = FORMULA.sub(" formula ", PLAIN_NUMBER.sub(" 0 ", sentence))
    return [match.group() for match in NUMBER.finditer(sentence)]


def too_many_numbers(text: str) -> list[str]:
    return [sentence for sentence in sentences(text) if len(numbers(sentence)) > 1]


@pytest.mark.parametrize("page", PAGES)
def test_a_sentence_has_at_most_one_number(page):
    bad = too_many_numbers((ROOT / page).read_text(encoding="utf-8"))
    assert not bad, f"{page}: put these numbers into a table, or leave some out:\n" + "\n".join(bad)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The error was 0.019 at a budget of 0.3.", ["0.019", "0.3"]),
        ("- A factor of 3 to 6, *at\n  most*. It is [quick](docs/12.md).", ["3", "6"]),
        ("| 1 | 2 |\n\nOf **1,024** images 5% differ,\nand the speed-up is 3.4x.", ["1,024", "5%", "3.4x"]),
        ("Errors of $4 \\cdot 10^{-5}$ and 2e-5 are small.", ["0", "2e-5"]),  # a formula that is only a number
    ],
)
def test_it_finds_a_bad_sentence(text, found):
    assert [numbers(sentence) for sentence in too_many_numbers(text)] == [found]


@pytest.mark.parametrize(
    "text",
    [
        "It takes 3 steps. Then 4 more.",
        "- 3 steps\n- 4 more",
        "It takes 3 steps:\n\n| 1 | 2 |\n|---|---|\n| 3 | 4 |\n\nThen 4 more.",
        "With `p = 0.5`, $x^2 + 3 \\alpha$ and [this](a1/b2.md) it takes 3 steps.",
        "DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095) on 32x32x3 images in float32 takes 20 steps.",
        "On 2026-11-27 with Python 3.11, torch 2.13 and levels 1, 3 and 4 of the ladder it took 20 steps.",
        "```python\nx = 1 + 2 + 3\n```",
        "    multilevel-sde sample --budget 9 --count 64",
    ],
)
def test_tables_code_links_dates_versions_and_names_do_not_count(text):
    assert not too_many_numbers(text)


def test_what_costs_much_is_expensive():
    found = []
    for path in WRITTEN:
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [f"{path.relative_to(ROOT)}:{n}: {line}" for n, line in enumerate(lines, start=1) if DEAR.search(line)]
    assert not found, 'say "expensive":\n' + "\n".join(found)


def test_it_finds_the_word():
    assert DEAR.search("The Dearest level.")
    assert not DEAR.search("An endearing level.")
