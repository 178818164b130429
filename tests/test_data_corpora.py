import ast
import graphlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import types
import warnings
from pathlib import Path

import pytest
from data_samples import folder_data, markov_corpus

import sublora.data
from sublora import config
from sublora.data.corpora import READERS, open_reader
from sublora.data.corpora.python_sources import SourceBatch, SourceFile, docstrings_of_source, source_files
from sublora.data.corpora.reader import BATCH_CHARACTERS, batch_texts
from sublora.system.errors import UserError


def documents_of(reader):
    return [document for batch in reader.batches() for document in batch.read().documents]


def test_batches_of_texts_are_bounded():
    texts = [str(i) * 1000 for i in range(5000)]
    batches = list(batch_texts((text, None) for text in texts))
    assert [text for batch in batches for text in batch.documents] == texts
    assert len(batches) > 2
    assert all(sum(map(len, batch.documents[:-1])) < BATCH_CHARACTERS for batch in batches)


# Docstrings

SOURCE = b'''
"""Module.

    Indented.
"""
if True:
    class A:
        """Class."""
        async def f(self):
            """Coroutine."""
            try:
                pass
            except ValueError:
                def in_handler():
                    """In a handler."""
            match self:
                case 1:
                    def in_case():
                        """In a case."""
        g = lambda: "no docstring"
        "no docstring either"
    def h(): 1; """not the first statement"""
    def i(): f"not {1} a constant"
    def j():
        b"bytes"
'''


def test_docstrings_of_source():
    expected = ["Module.\n\nIndented.", "Class.", "Coroutine.", "In a handler.", "In a case."]
    assert sorted(docstrings_of_source(SOURCE)) == sorted(expected)


def test_docstrings_equal_a_walk_over_every_node():
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    found = 0
    for path in files:
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        expected = sorted(text for text in texts if text is not None)
        assert sorted(docstrings_of_source(source)) == expected
        found += len(expected)
    assert found > 300


@pytest.mark.parametrize("source", [b"def f(:", b"x = '\x00'", b"# coding: none-such\n", b"x = " + b"(" * 5000])
def test_source_that_does_not_parse_is_counted(source, tmp_path):
    (tmp_path / "bad.py").write_bytes(source)
    (tmp_path / "good.py").write_bytes(b"'''Good.'''\nx = '\\d'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an invalid escape is a warning of the corpus, not of ours
        texts = SourceBatch(
            tuple(SourceFile(tmp_path / name, name) for name in ("bad.py", "good.py")), docstrings_of_source
        ).read()
    assert texts.documents == ["Good."]
    assert texts.unparsable_files == 1


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A package and a module that must not be imported, on the path."""
    code = "'''{}'''\nraise SystemExit('imported')\n"
    for name in ("booby/__init__.py", "booby/sub/deep.py", "booby/tests/test_it.py", "booby_module.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code.format(name))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def docstring_reader(*names):
    return open_reader(config.DocstringCorpus(kind="docstrings", packages=names), Path())


def test_docstrings_are_found_without_importing(packages):
    reader = docstring_reader("booby", "booby_module")
    assert sorted(documents_of(reader)) == ["booby/__init__.py", "booby/sub/deep.py", "booby_module.py"]
    assert reader.total == sum(map(len, reader.batches())) == 3
    assert "booby" not in sys.modules
    assert reader.provenance() == {
        "python": platform.python_version(),
        "package_versions": {"booby": None, "booby_module": None},
        "source_files": {"booby": 2, "booby_module": 1},
    }


def test_standard_library_is_without_other_packages_and_tests():
    files = [file.path for file in source_files("stdlib")]
    assert Path(ast.__file__).resolve() in {path.resolve() for path in files}
    folder = sysconfig.get_paths()["stdlib"]
    below = {part for path in files for part in path.relative_to(folder).parts}
    assert not {"site-packages", "dist-packages", "test", "tests"} & below
    assert files == sorted(files)


def test_versions_of_packages_are_recorded():
    versions = docstring_reader("stdlib", "numpy", "sklearn").provenance()["package_versions"]
    assert versions == {
        "stdlib": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
        "sklearn": importlib.metadata.version("scikit-learn"),
    }


@pytest.mark.parametrize("name", ["no_such_package", "os.path", "not-a-name", "without_spec"])
def test_unknown_packages_are_refused(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "without_spec", types.ModuleType("without_spec"))
    with pytest.raises(UserError, match=f"data.corpus.packages: no installed package '{name}'; expected import names"):
        docstring_reader("stdlib", name)


def test_packages_without_source_are_refused():
    with pytest.raises(UserError, match="'sys' has no Python source files"):
        docstring_reader("sys")


# Hugging Face: the same code reads a folder of parquet files; the hub itself is out of reach of a test.


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """Layout of the hub's parquet conversion: {configuration}/{split}/{number}.parquet."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [f"document {i}" for i in range(700)]
    for part in range(2):
        path = tmp_path / "owner" / "name" / "plain_text" / "train" / f"{part:04}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = {"text": rows[350 * part :][:350], "id": list(range(350))}
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    return tmp_path, rows


def huggingface(**changes):
    values = {"dataset": "owner/name", "revision": "refs/convert/parquet", "split": "train", "text_field": "text"}
    return config.HuggingFaceCorpus(kind="huggingface", **(values | {"unit_field": None} | changes))


def test_parquet_files_are_read_in_order(parquet):
    root, rows = parquet
    reader = open_reader(huggingface(), root)
    assert documents_of(reader) == rows
    assert max(map(len, reader.batches())) == 256
    assert reader.total == 700
    import datasets

    assert reader.provenance() == {"rows": 700, "commit": None, "datasets_version": datasets.__version__}


def test_parquet_errors(parquet):
    root, _ = parquet
    with pytest.raises(UserError, match="data.corpus.text_field: .* has no field 'body', found text, id"):
        open_reader(huggingface(text_field="body"), root)
    with pytest.raises(UserError, match=r"row 0 holds int in field 'id', expected text"):
        documents_of(open_reader(huggingface(text_field="id"), root))
    with pytest.raises(UserError, match="data.corpus.split 'val': data.corpus.dataset 'owner/name' has the splits tra"):
        open_reader(huggingface(split="val"), root)
    with pytest.raises(UserError, match=r"data.corpus.dataset '/no/such': not found at revision"):
        open_reader(huggingface(dataset="/no/such"), root)


def test_a_loading_script_is_refused_with_the_revision_to_use(tmp_path):
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("raise SystemExit('run')")
    with pytest.raises(UserError, match="scripts are no longer supported.*needs revision: refs/convert/parquet"):
        open_reader(huggingface(dataset="scripted", revision="main"), tmp_path)


def test_a_damaged_parquet_file_is_an_error_in_one_line(parquet):
    root, _ = parquet
    path = root / "owner/name/plain_text/train/0001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="data.corpus.dataset 'owner/name': `datasets` cannot load") as caught:
        open_reader(huggingface(), root)
    assert "\n" not in str(caught.value)


def test_commit_is_read_from_the_addresses_of_the_hub():
    from sublora.data.corpora.huggingface import _commit

    address = "hf://datasets/owner/name@{}/plain_text/train/0000.parquet"
    assert _commit({"train": [address.format("abc"), address.format("abc")]}) == "abc"
    assert _commit({"train": ["/local/0000.parquet"]}) is None
    assert _commit(None) is None


def test_without_network_the_error_says_what_to_do(tmp_path):
    code = (
        "import sys, json; from pathlib import Path; from sublora import config\n"
        "from sublora.data.corpora import open_reader\n"
        "open_reader(config.HuggingFaceCorpus(**json.loads(sys.argv[1])), Path('/'))"
    )
    argument = json.dumps(huggingface(dataset="Skylion007/openwebtext").model_dump())
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, argument]
    result = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)
    assert result.stderr.strip().splitlines()[-1] == (
        "sublora.system.errors.UserError: data.corpus.dataset 'Skylion007/openwebtext': cannot reach the Hugging "
        "Face hub (Couldn't reach 'Skylion007/openwebtext' on the Hub (OfflineModeIsEnabled)); run `sublora prepare` "
        "on a machine with internet access, or copy the cache (HF_HOME) of such a machine here and set HF_HUB_OFFLINE=1"
    )


def test_markov_corpus_has_a_reader():
    reader = open_reader(markov_corpus(), Path())
    assert len(documents_of(reader)) == 50
    assert 0 < reader.provenance()["entropy_rate_bits"] < reader.provenance()["symbol_entropy_bits"] < 2


def test_every_corpus_kind_has_a_reader():
    assert set(READERS) == set(config.Data.model_fields["corpus"].annotation.__args__)
    for reader in READERS.values():
        module, _, name = reader.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    with pytest.raises(TypeError, match="no reader for Grid"):
        open_reader(config.Grid(budgets=(1,), allocations=("uniform",), seeds=(0,)), Path())


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"kind": "folder", "pth": "x", "text_field": "t"}, "'data.corpus.pth'; did you mean 'data.corpus.path'?"),
        ({"kind": "docstrings", "package": ["x"]}, "'data.corpus.package'; did you mean 'data.corpus.packages'?"),
        (markov_corpus().model_dump() | {"symbol": 3}, "'data.corpus.symbol'; did you mean 'data.corpus.symbols'?"),
    ],
)
def test_a_misspelt_key_of_a_corpus_names_the_known_one(corpus, message):
    values = folder_data().model_dump() | {"corpus": corpus}
    with pytest.raises(UserError, match=re.escape(f"unknown key {message}")):
        config.parse_settings({"data": values}, source="file")


def test_modules_of_data_import_in_one_direction():
    folder = Path(sublora.data.__file__).parent
    imports = {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): {
            node.module.removeprefix("sublora.data.")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module.startswith("sublora.data.")
        }
        for path in folder.rglob("*.py")
    }
    assert imports["corpora.reader"] == set()
    graphlib.TopologicalSorter(imports).prepare()  # CycleError names the circle
