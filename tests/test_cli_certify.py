"""sublora certify: every file format, the table, the JSON, and one line for each bad input."""

import io
import json
import os
import re
import shlex
import sys
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from hostile import encrypted, npy_header, zipped

from sublora import certify, cli
from sublora.system.errors import UserError
from sublora.tools.certify import _up, read_example_losses

CASES = Path(__file__).parent / "cases"
LOSSES = np.random.default_rng(1).normal(4.2, 0.3, 500)
COUNTS = np.random.default_rng(2).integers(1, 4, 500)
OPTIONS = ["--code-bits", 300, "--lower", 0.2, "--upper", 15.6]
SETTINGS = {"code_bits": 300, "lower": 0.2, "upper": 15.6}
GUIDE = REPOSITORY / "docs" / "guide" / "certify.md"


def run(monkeypatch, capfd, *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `sublora certify ...`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["sublora", "certify", *map(str, arguments)])
    try:
        cli.main()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def write(path: Path, columns: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".csv":
        pd.DataFrame(columns).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(columns).to_parquet(path)
    elif path.suffix == ".npz":
        np.savez(path, **columns)
    else:
        (values,) = columns.values()
        np.save(path, values)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".npy", ".parquet"])
def test_every_format_gives_the_same_bounds(tmp_path, monkeypatch, capfd, suffix):
    path = write(tmp_path / f"losses{suffix}", {"loss": LOSSES})
    out = tmp_path / "new" / "certified.json"
    status, text, errors = run(monkeypatch, capfd, path, *OPTIONS, "--n", 500, "--json", out)
    assert (status, errors) == (0, "")
    expected = certify(LOSSES, n=500, **SETTINGS)
    assert json.loads(out.read_text()) == expected.as_json()
    assert "quote this one" in text and _up(expected.value) in text and "Taken on trust" in text


@pytest.mark.parametrize(
    ("suffix", "option"), [(".csv", "--column"), (".npz", "--key"), (".parquet", "--column"), (".npz", "--column")]
)
def test_a_column_among_others_and_its_counts(tmp_path, monkeypatch, capfd, suffix, option):
    names = np.array([f"document {index}" for index in range(500)])
    path = write(tmp_path / f"draw{suffix}", {"name": names, "loss": LOSSES, "drawn": COUNTS})
    arguments = [*OPTIONS, "--n", 5000, "--subsample", "--counts", "drawn", "--json", tmp_path / "out.json"]
    status, _, errors = run(monkeypatch, capfd, path, option, "loss", *arguments)
    assert (status, errors) == (0, "")
    expected = certify(LOSSES, counts=COUNTS, n=5000, subsample=True, **SETTINGS)
    assert json.loads((tmp_path / "out.json").read_text()) == expected.as_json()


def test_losses_beside_their_counts_need_no_name(tmp_path):
    for suffix in (".csv", ".npz", ".parquet"):
        path = write(tmp_path / f"draw{suffix}", {"drawn": COUNTS, "loss": LOSSES})
        losses, counts = read_example_losses(path, counts="drawn")
        assert (losses == LOSSES).all() and (counts == COUNTS).all()


def test_counts_beside_an_npy_file_are_another(tmp_path):
    path, counts = tmp_path / "losses.npy", tmp_path / "counts.npy"
    np.save(path, LOSSES)
    np.save(counts, COUNTS)
    losses, multiplicities = read_example_losses(path, counts=str(counts))
    assert (losses == LOSSES).all() and (multiplicities == COUNTS).all()


@pytest.mark.parametrize(
    "text",
    [
        "loss\n4.25\n3.5\n",
        "4.25\n3.5\n",
        "\ufeffloss\r\n4.25\r\n\r\n3.5\r\n",
        '"loss"\n"4.25"\n 3.5 ',
        "4\n3.5\n3\n",
        "0.125\n4.25\n",
    ],
)
def test_csv_dialects(tmp_path, text):
    path = tmp_path / "losses.csv"
    path.write_text(text, encoding="utf-8")
    losses, _ = read_example_losses(path)
    assert losses.dtype == np.float64 and list(losses) == [float(each) for each in re.findall(r"\d[\d.]*", text)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiters_and_columns_without_a_header(tmp_path, delimiter):
    path = tmp_path / "losses.csv"
    path.write_text(f"7{delimiter}4.25\n8{delimiter}3.5\n")
    assert list(read_example_losses(path, "2")[0]) == [4.25, 3.5]


def parquet(rows: int) -> bytes:
    """A file of equal losses, which take next to nothing in it."""
    buffer = io.BytesIO()
    values = pa.array([4.25]).take(pa.array(np.zeros(rows, dtype=np.int32)))
    pq.write_table(pa.table({"loss": values}), buffer, compression="zstd")
    return buffer.getvalue()


ZEROS = npy_header("<f8", (1 << 24,)) + bytes(1 << 27)
BOMB, BZIP2 = zipped({"losses.npy": ZEROS}), zipped({"losses.npy": ZEROS}, zipfile.ZIP_BZIP2)
ENCRYPTED = encrypted(zipped({"losses.npy": b"x" * 100}))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"loss\n", "holds a header and no losses"),
        ("a.csv", b"0\n4.25\n3.5\n", "line 1 holds '0' above losses with decimals: delete it if it is a header"),
        ("a.csv", b"4.2x\n3.5\n", "line 1 holds '4.2x', neither a number nor the name of a column"),
        ("a.csv", b"loss\n4.25\nloss\n3.5\n", "line 3 holds 'loss', expected a number"),
        ("a.csv", b'loss\n4.25\n"4,25"\n', "line 3 holds '4,25', expected a number with a decimal point"),
        ("a.csv", b"loss\n4.25\n4,25\n", "line 3 has 2 cells, expected 1"),
        ("a.csv", b"4,25\n3,50\n", "holds '1', '2'; name the losses with --column"),
        ("a.csv", b",loss\n0,4.25\n", "holds '', 'loss'; name the losses with --column"),
        ("a.csv", b"loss,loss\n4.25,1\n", "two columns have the same name"),
        ("a.csv", b"a,loss\n1,4.25\n2\n", "line 3 has 1 cells, expected 2"),
        ("a.csv", b"loss\n4.25\n\xff\xfe\n", "not a readable CSV file in UTF-8"),
        ("a.csv", b"loss\n4.25\nnan\n", "losses: row 2 is nan"),
        ("a.csv", b"loss\n4.25\n99\n", "losses: row 2 is 99.0, outside [0.2, 15.6]"),
        ("a.csv", b"loss\n4.25\n3.5\n3.5\n", "3 losses, but n = 2"),
        ("a.npy", b"4.25", "not a readable .npy file"),
        ("a.npz", b"4.25", "not a readable .npz file"),
        ("a.parquet", b"4.25", "not a readable parquet file"),
        ("a.csv", b"loss\n4_2\n3.5\n", "line 2 holds '4_2', expected a number"),
        ("a.csv", b"4_2\n3.5\n", "line 1 holds '4_2', neither a number nor the name of a column"),
        ("a.csv", "loss\n4.25\n".encode("utf-16-le"), "not a readable CSV file in UTF-8: it looks like UTF-16"),
        ("a.csv", "loss\n4.25\n".encode("utf-16"), "not a readable CSV file in UTF-8: it looks like UTF-16"),
        ("a.csv", "loss\n４.25\n".encode(), "line 2 holds '４.25', expected a number"),
        ("a.csv", b"a," * 600_000, "a line of more than 1,048,576 characters"),
        ("a.npz", BOMB, "losses.npy unpacks to 134,217,856 bytes, more than 16 times the file"),
        ("a.npz", BZIP2, "losses.npy is packed or encrypted in a way that NumPy does not write"),
        ("a.npz", ENCRYPTED, "packed or encrypted"),
        ("a.npz", zipped({"losses.npy": b"no array"}), "not a readable .npz file of numbers: losses.npy"),
        ("a.npz", zipped({"losses.npy": npy_header("<f8", (1 << 40,))}), "which takes 8796093022208 bytes, in 0 bytes"),
        ("a.npz", zipped({"losses.npy": npy_header([("a", "<f8")], (2,)) + bytes(16)}), "expected numbers or text"),
        ("a.npy", npy_header("<f8", (1 << 40,)) + bytes(16), "which takes 8796093022208 bytes, in 16 bytes"),
        ("a.npy", zipped({"losses.npy": b""}), "it holds several arrays: an .npz file under another name"),
        ("a.parquet", parquet(20_000_000), "20,000,000 rows in a file of"),
        ("a.json", b"[4.25]", "expected a name that ends in .csv, .npz, .npy, .parquet"),
    ],
)
def test_bad_files_stop_with_one_line(tmp_path, monkeypatch, capfd, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    status, _, error = run(monkeypatch, capfd, path, *OPTIONS, "--n", 2)
    assert status == 2 and error.startswith(f"error: {path}: ") and error.count("\n") == 1 and expected in error


WHOLE = "delete it if it is a header"


@pytest.mark.parametrize("text", [(CASES / "digit_header_errors.csv").read_text(), "0\n1\n0\n1\n", "7\n1\n0\n"])
def test_a_first_line_of_whole_numbers_above_a_draw_of_errors(tmp_path, monkeypatch, capfd, text):
    """Pandas writes 0, 1, ... above columns without names; in a draw the number of lines does not tell."""
    path = tmp_path / "errors.csv"
    path.write_text(text)
    options = ["--code-bits", 100, "--n", 5000, "--lower", 0, "--upper", 1]
    status, _, error = run(monkeypatch, capfd, path, *options, "--subsample")
    assert status == 2 and "line 1 holds " in error and "does not tell" in error and WHOLE in error
    # With a name above it, or as the losses of all n, the line is a loss.
    n = len(text.splitlines())
    assert read_example_losses(path)[0].size == n
    path.write_text("error\n" + text)
    assert read_example_losses(path, drawn=True)[0].size == n


def test_two_columns_of_whole_numbers_in_a_draw(tmp_path):
    path = tmp_path / "errors.csv"
    path.write_text("0,1\n0,1\n1,0\n")
    with pytest.raises(UserError, match="line 1 holds '0, 1', and the number of rows does not tell"):
        read_example_losses(path, "2", drawn=True)
    path.write_text("0,1\n0,1.0\n1,0.5\n")
    with pytest.raises(UserError, match="line 1 holds '0, 1', and the number of rows does not tell"):
        read_example_losses(path, "2", drawn=True)
    path.write_text("0,1.0\n1,0.5\n")
    assert list(read_example_losses(path, "2", drawn=True)[0]) == [1.0, 0.5]


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".npy", ".parquet"])
def test_a_pipe_is_no_file(tmp_path, monkeypatch, capfd, suffix):
    path = tmp_path / f"losses{suffix}"
    os.mkfifo(path)
    status, _, error = run(monkeypatch, capfd, path, *OPTIONS, "--n", 2)
    assert status == 2 and "a pipe or a device, expected a file" in error


def test_a_large_range_is_printed(tmp_path, monkeypatch, capfd):
    path = write(tmp_path / "losses.npy", {"a": LOSSES})
    options = ["--code-bits", 300, "--n", 500, "--lower", 0, "--upper", "1e25"]
    status, text, error = run(monkeypatch, capfd, path, *options)
    assert (status, error) == (0, "") and re.search(r"\d\.\d{7}E\+24", text)
    assert Decimal(_up(1e25 / 3)) >= Decimal(1e25 / 3)


@pytest.mark.parametrize("option", ["--n", "--code-bits", "--upper", "--alternatives"])
@pytest.mark.parametrize("value", ["3_0", "x", "9" * 500])
def test_options_that_are_no_numbers(tmp_path, monkeypatch, capfd, option, value):
    path = write(tmp_path / "losses.npy", {"a": LOSSES})
    status, _, error = run(monkeypatch, capfd, path, *OPTIONS, "--n", 500, option, value)
    assert status == 2 and "Traceback" not in error


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".npy", ".parquet"])
def test_absent_files_stop_with_one_line(tmp_path, monkeypatch, capfd, suffix):
    path = tmp_path / f"absent{suffix}"
    status, _, error = run(monkeypatch, capfd, path, *OPTIONS, "--n", 2)
    assert (status, error) == (2, f"error: {path}: there is no such file\n")


@pytest.mark.parametrize(
    ("suffix", "values", "options", "expected"),
    [
        (".npz", {"a": LOSSES, "b": LOSSES}, [], "holds 'a', 'b'; name the losses"),
        (".npz", {"a": LOSSES}, ["--key", "loss"], "has no 'loss', it holds 'a'"),
        (".npy", {"a": LOSSES}, ["--column", "loss"], "has no 'loss'"),
        (".npy", {"a": LOSSES.reshape(2, -1)}, [], "one-dimensional, one per example, found shape (2, 250)"),
        (".npy", {"a": LOSSES.astype(str)}, [], "losses must be numbers"),
        (".npz", {"a": np.array([None, 1.0])}, [], "not a readable .npz file of numbers"),
        (".parquet", {"a": LOSSES.astype(str)}, [], "losses must be numbers"),
        (".parquet", {"a": np.append(LOSSES[1:], np.nan)}, [], "row 500 is nan"),
        (".parquet", {"a": LOSSES}, ["--counts", "drawn"], "has no 'drawn', it holds 'a'"),
        (".npy", {"a": LOSSES}, ["--subsample"], "if every example was scored once, it is not a subsample"),
        (".npy", {"a": LOSSES}, ["--delta", 2], "delta must lie strictly between 0 and 1, found 2"),
        (".npy", {"a": LOSSES}, ["--lower", 20], "needs finite lower < upper"),
        (".npy", {"a": LOSSES}, ["--code-bits", -1], "code_bits must be finite and not negative"),
    ],
)
def test_bad_values_and_options_stop_with_one_line(tmp_path, monkeypatch, capfd, suffix, values, options, expected):
    path = write(tmp_path / f"losses{suffix}", values)
    status, _, error = run(monkeypatch, capfd, path, *OPTIONS, "--n", 500, *options)
    assert status == 2 and error.startswith(f"error: {path}: ") and error.count("\n") == 1 and expected in error


def test_a_usage_error_has_status_2_and_no_traceback(tmp_path, monkeypatch, capfd):
    status, _, error = run(monkeypatch, capfd, tmp_path / "losses.csv", "--n", "many")
    assert status == 2 and "Traceback" not in error
    path = write(tmp_path / "losses.npy", {"a": LOSSES})
    status, _, error = run(monkeypatch, capfd, path, *OPTIONS, "--n", 500, "--json", tmp_path)
    assert status == 2 and "cannot be written" in error and error.count("\n") == 1


def test_warnings_go_to_stderr_and_the_status_stays_0(tmp_path, monkeypatch, capfd):
    path = write(tmp_path / "losses.npy", {"a": LOSSES})
    status, text, error = run(monkeypatch, capfd, path, *OPTIONS, "--n", 5000, "--subsample")
    assert status == 0 and error.startswith("warning: no loss occurs twice") and "warning" not in text


def test_printed_bounds_are_rounded_up():
    assert [_up(4.40001), _up(4.4), _up(4.25)] == ["4.4001", "4.4001", "4.2500"]  # the double 4.4 lies above 4.4


def test_help_names_every_option(monkeypatch, capfd):
    status, text, _ = run(monkeypatch, capfd, "--help")
    assert status == 0
    for option in ("--code-bits", "--subsample", "--delta-sample", "--counts", "--alternatives", "--json", "--key"):
        assert option in text


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_guide_run(tmp_path, monkeypatch, capfd):
    """In one folder, Python first; every line of output that the page shows must come out."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in code_blocks("python"):
        exec(block, scope)
    commands = [line for block in code_blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) >= 3
    printed = ""
    for command in commands:
        program, name, *arguments = shlex.split(command)
        assert (program, name) == ("sublora", "certify")
        status, text, error = run(monkeypatch, capfd, *arguments)
        assert status == 0, error
        printed += text + error
    for block in code_blocks("text"):
        for line in block.splitlines():
            assert line in printed, line
    assert json.loads(Path("certified.json").read_text())["quoted"] == "betting_subsampled"
