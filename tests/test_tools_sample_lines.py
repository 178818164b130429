"""Files of values per example, as lm-evaluation-harness writes them."""

import json
from pathlib import Path

import pytest
from base_samples import complaint

from sublora.tools.certify_pairs import paired_values, read_sample_lines


def samples(path: Path, values: dict[int, float], **extra: object) -> Path:
    """A file of the harness's form with one line for each example."""
    lines = [
        {
            "doc_id": doc_id,
            "doc": {"question": f"q{doc_id}"},
            "target": "a",
            "arguments": {"gen_args_0": {"arg_0": "q", "arg_1": " a"}},
            "resps": [[["-1.5", "False"]]],
            "filtered_resps": [["-1.5", "False"]],
            "filter": "none",
            "metrics": ["acc"],
            "doc_hash": f"{doc_id:064x}",
            "acc": value,
        }
        | extra
        for doc_id, value in values.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path, column: str | None = None, key: str | None = None, filter_name: str | None = None):
    return read_sample_lines(path, column, key, filter_name)


def test_examples_are_paired_by_their_number(tmp_path: Path) -> None:
    model = read(samples(tmp_path / "samples_a.jsonl", {0: 1.0, 1: 0.0, 7: 1.0}))
    reference = read(samples(tmp_path / "samples_b.jsonl", {7: 0.0, 0: 0.5, 1: 0.25}))
    values, others = paired_values(model, reference)
    assert values.tolist() == [1.0, 0.0, 1.0] and others.tolist() == [0.5, 0.25, 0.0]


def test_other_examples_or_other_texts_are_refused_by_name(tmp_path: Path) -> None:
    model = read(samples(tmp_path / "a.jsonl", {0: 1.0, 1: 0.0, 2: 0.0}))
    fewer = read(samples(tmp_path / "b.jsonl", {0: 1.0}))
    assert "b.jsonl: lacks 2 examples of " in complaint(lambda: paired_values(model, fewer))
    assert "(1, 2)" in complaint(lambda: paired_values(model, fewer))
    assert "lacks 2 examples" in complaint(lambda: paired_values(fewer, model))
    other = read(samples(tmp_path / "c.jsonl", {0: 1.0, 1: 0.0, 2: 0.0}, doc_hash="f" * 64))
    assert "another doc_hash" in complaint(lambda: paired_values(model, other))


def test_filters_of_the_harness_are_told_apart(tmp_path: Path) -> None:
    strict = samples(tmp_path / "a.jsonl", {0: 1.0, 1: 0.0}, filter="strict-match").read_text()
    flexible = samples(tmp_path / "b.jsonl", {0: 1.0, 1: 1.0}, filter="flexible-extract").read_text()
    (both := tmp_path / "both.jsonl").write_text(strict + "\n" + flexible)
    assert "doc_id 0 occurs twice; name one of its filters with --filter" in complaint(lambda: read(both))
    assert read(both, filter_name="flexible-extract").values_D.tolist() == [1.0, 1.0]
    assert "no line with filter 'other'" in complaint(lambda: read(both, filter_name="other"))
    (twice := tmp_path / "twice.jsonl").write_text(strict + strict)
    assert "keep one line for each example" in complaint(lambda: read(twice))


@pytest.mark.parametrize(
    "text,words",
    [
        ("{", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("[1]", "line 1 is no object"),
        ("", "holds no line"),
        ('{"doc_id": 1, "acc": [1, 2]}', "'acc' is [1, 2], expected a number"),
        ('{"doc_id": 1, "acc": "1"}', "expected a number"),
        ('{"doc_id": 1.5, "acc": 1}', "expected text or a whole number"),
        ('{"doc_id": 1, "f1": 1}', "line 1 has no 'acc'; its numbers are 'doc_id', 'f1'"),
        ('{"doc_id": 1, "acc": 1' + "0" * 400 + "}", "beyond every floating-point number"),
    ],
)
def test_lines_that_are_no_values_are_one_line_of_complaint(tmp_path: Path, text: str, words: str) -> None:
    (path := tmp_path / "samples.jsonl").write_text(text)
    assert words in complaint(lambda: read(path, "acc"))


def test_a_metric_is_named_unless_there_is_one(tmp_path: Path) -> None:
    path = samples(tmp_path / "a.jsonl", {0: 1.0}, metrics=["acc", "acc_norm"], acc_norm=0.5)
    assert "name the values with --column; there are 'acc', 'acc_norm'" in complaint(lambda: read(path))
    assert read(path, "acc_norm").values_D.tolist() == [0.5]


def test_without_a_key_examples_are_paired_by_their_place(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"loss": 1.5}\n\n{"loss": true}\n')
    a, b = (read(tmp_path / f"{name}.jsonl", "loss") for name in "ab")
    assert a.keys is None and paired_values(a, b)[1].tolist() == [1.5, 1.0]
    (tmp_path / "c.jsonl").write_text('{"loss": 1.5}\n')
    assert "expected the same examples in the same order" in complaint(
        lambda: paired_values(a, read(tmp_path / "c.jsonl", "loss"))
    )
