"""What the documents name is there: files, tests, commands' files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
NAMED = re.compile(r"`((?:rlhf_lab|tests|experiments|notebooks|docs|benchmarks)/[\w./-]+\.\w+)`")


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))]
)
def test_every_file_and_test_that_a_page_names_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [name for name in NAMED.findall(text) if not (ROOT / name).exists()]
    missing += [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in TESTS]
    missing += [
        link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert missing == []


def test_the_table_of_details_names_a_place_for_each():
    rows = re.findall(r"^\| (\d+) \|.*$", (ROOT / "docs/nplus.md").read_text(), re.M)
    assert [int(number) for number in rows] == [n for n in range(1, 26) if n not in (6, 17)]
