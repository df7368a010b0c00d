"""The documents name files and commands that exist."""

import re
from pathlib import Path

import pytest

from atoll.node.exit_codes import MEANINGS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document):
    text = document.read_text()
    named = set(re.findall(r"\b((?:node|p2p|trainer|protocol|docker|tests)/[\w./-]*\w(?:\.\w+)?/?)", text))
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    missing = {path for path in named if not (ROOT / path).exists()}
    missing |= {link for link in links if not (document.parent / link).exists()}
    assert not missing


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_shows_how_to_begin(command):
    assert command in (ROOT / "README.md").read_text()


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for document in (*DOCUMENTS, ROOT / ".ci" / "run"):
        for target in set(re.findall(r"(?:`|\$ |^)make ([a-z]+)\b", document.read_text(), re.MULTILINE)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document.name}: make {target}"


def test_the_readme_has_the_table_of_exit_codes():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == [(str(code.value), meaning) for code, meaning in MEANINGS.items()]
