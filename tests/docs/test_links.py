"""What the pages name and link to is there: files, tests, headings."""

import re
from pathlib import Path

import pytest
from doc_pages import FENCE, PAGES, ROOT, blocks, read

TESTS = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
NAMED = re.compile(r"`((?:rlhf_lab|tests|experiments|notebooks|docs|benchmarks)/[\w./-]+\.\w+)`")
NOT_SHOWN = re.compile(r"<!--.*?-->", re.S)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")  # not to another site


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} (.+)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def dead_links(page: str, text: str) -> list[str]:
    dead = []
    for target, anchor in LINK.findall(NOT_SHOWN.sub("", FENCE.sub("", text))):
        file = (ROOT / page).parent / target if target else ROOT / page
        if not file.exists():
            dead.append(target)
        elif anchor and file.suffix == ".md":
            aimed = text if not target else file.read_text(encoding="utf-8")
            if "<!-- made:" not in aimed and anchor not in anchors(aimed):  # Sphinx looks at what is made
                dead.append(f"{target}#{anchor}")
    return dead


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page):
    assert dead_links(page, read(page)) == []


def test_a_dead_link_is_found():
    text = "# Here we are\n[a](README.md) [b](nothing.md) [c](#here-we-are) [d](#there) [e](README.md#nowhere)\n"
    assert dead_links("README.md", text) == ["nothing.md", "#there", "README.md#nowhere"]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_test_that_a_page_names_is_there(page):
    text = read(page)
    shown = {block.name for block in blocks(page)}
    missing = [name for name in NAMED.findall(text) if name not in shown and not (ROOT / name).exists()]
    missing += [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in TESTS]
    assert missing == []


def test_the_table_of_details_names_a_place_for_each():
    rows = re.findall(r"^\| (\d+) \|.*$", Path(ROOT / "docs/nplus.md").read_text(), re.M)
    assert [int(number) for number in rows] == [n for n in range(1, 26) if n not in (6, 17)]
