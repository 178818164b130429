"""The guide to any network runs unchanged."""

import re

import pytest
import torch
from conftest import REPOSITORY

GUIDE = REPOSITORY / "docs/guide/any_network.md"


@pytest.mark.slow
def test_its_code_runs_from_top_to_bottom(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), scope)
    torch.set_num_threads(threads)
    assert (tmp_path / "wrapped.pt").stat().st_size < 10_000


def test_the_files_that_it_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", GUIDE.read_text(encoding="utf-8")):
        assert (GUIDE.parent / target).exists(), target
