"""The documentation names files and modules that exist, and every key of bounds.json."""

import re

import pytest
from conftest import REPOSITORY

PAGES = sorted({*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_files_of_the_repository_that_a_page_names_exist(page):
    named = re.findall(
        r"`((?:sublora|workflow|tests|benchmarks|examples|profiles)/[\w/.-]+)`", page.read_text(encoding="utf-8")
    )
    made = re.compile(r"benchmarks/results/")
    assert [name for name in named if not made.match(name) and not (REPOSITORY / name).exists()] == []
