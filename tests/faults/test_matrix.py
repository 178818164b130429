"""Every row of the fault matrix: one line, exit status 2, nothing lost, and the message that the page has."""

from pathlib import Path

import pytest

from faults.matrix import MATRIX, Fault, message
from faults.scene import Scene
from faults.table import PAGE, TITLES, page, row

WRITTEN = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("fault", MATRIX, ids=lambda fault: fault.id)
def test_a_fault_is_one_line_and_changes_nothing(whole: Scene, tmp_path: Path, fault: Fault) -> None:
    assert row(fault.what, message(fault, whole.copy(tmp_path.resolve() / "scene"))) in WRITTEN, "run `make faults`"


def test_the_page_has_these_rows_and_no_others() -> None:
    names = [(fault.group, fault.what) for fault in MATRIX]
    assert len(set(names)) == len(names)
    skeleton = page(dict.fromkeys(names, "")).splitlines()
    assert [line.split(" | ")[0] for line in WRITTEN.splitlines()] == [line.split(" | ")[0] for line in skeleton]
    assert {fault.group for fault in MATRIX} == set(TITLES)
