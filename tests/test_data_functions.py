"""The corpus of functions: what is a document, and that its text is the source without docstrings."""

import ast
import re
import sys
import sysconfig
import textwrap
import warnings
from pathlib import Path

import pytest
from data_samples import folder_data

from sublora import config
from sublora.data.corpora import open_reader
from sublora.data.corpora.functions import functions_of_source
from sublora.data.corpora.python_sources import SourceBatch, SourceFile
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_dataset
from sublora.data.tokenizers import load_tokenizer

CASES = {
    "docstring, comments and blank lines": (
        '''
        # not part of it
        def f(x):  # signature
            # before
            """Doc.

            More.
            """  # noqa: D400

            # after
            y = x + 1  # sum

            return y  # end
            # below the last statement
        ''',
        ["def f(x):  # signature\n    # before\n    # after\n    y = x + 1  # sum\n\n    return y  # end"],
    ),
    "decorators": (
        """
        class A:
            @property
            # between
            @cache(
                size=1,
            )
            def f(self):
                "Doc."
                return 1
        @(
            g
        )
        @ h
        def k(): pass
        """,
        [
            "@property\n# between\n@cache(\n    size=1,\n)\ndef f(self):\n    return 1",
            "@(\n    g\n)\n@ h\ndef k(): pass",
        ],
    ),
    "async": (
        '''
        async def f():
            """Doc."""
            await g()
        ''',
        ["async def f():\n    await g()"],
    ),
    "a function inside a function is part of it, and its docstring goes as well": (
        '''
        def f():
            """Doc."""
            def g():
                """Doc of g."""
                return 1
            class B:
                """Doc of B."""
                def h(self):
                    """Doc of h."""
            try:
                pass
            except E:
                def k(): "doc of k"
            return g
        ''',
        [
            "def f():\n    def g():\n        return 1\n    class B:\n        def h(self):\n            pass\n"
            "    try:\n        pass\n    except E:\n        def k(): pass\n    return g"
        ],
    ),
    "blocks and nested classes": (
        '''
        if sys:
            def a(): return 1
        else:
            class B:
                """Doc."""
                class C:
                    def b(self): return 2
        try:
            def c(): return 3
        except E:
            def d(): return 4
        finally:
            def e(): return 5
        match x:
            case 1:
                def g(): return 6
        h = lambda: "not a document"
        ''',
        [
            "def a(): return 1",
            "def b(self): return 2",
            "def c(): return 3",
            "def d(): return 4",
            "def e(): return 5",
            "def g(): return 6",
        ],
    ),
    "one-line bodies": (
        '''
        def a(): return 1
        def b(): "doc"; return 2  # kept
        def c(): """doc""" ; x = 3; return x;
        def d(): "doc"
        def e(): "doc";
        def f(): ...
        ''',
        ["def a(): return 1", "def b(): return 2  # kept", "def c(): x = 3; return x;", "def f(): ..."],
    ),
    "a docstring and code on one line of a block": (
        """
        def a():
            "doc"; x = 1
            return x
        def b():
            "doc";
            return 2
        def c():
            "doc"; \\
                x = 1
            return x
        """,
        [
            "def a():\n    x = 1\n    return x",
            "def b():\n    return 2",
            "def c():\n    x = 1\n    return x",
        ],
    ),
    "nothing but a docstring": (
        '''
        def a():
            """Doc."""
        def b():
            """Doc."""
            # and a comment
        class C:
            @abstractmethod
            def d(self):
                ("doc"
                 "string")
        ''',
        [],
    ),
    "what is no docstring stays": (
        '''
        def a():
            x = 1
            """second"""
        def b():
            f"not {1} a constant"
        def c():
            b"bytes"
        ''',
        ['def a():\n    x = 1\n    """second"""', 'def b():\n    f"not {1} a constant"', 'def c():\n    b"bytes"'],
    ),
    "docstrings in parentheses, in parts, raw": (
        '''
        def a():
            ("doc"
             "string")
            return 1
        def b():
            "doc" \\
            "string"
            return 2
        def c():
            r"""\\d"""
            return 3
        ''',
        ["def a():\n    return 1", "def b():\n    return 2", "def c():\n    return 3"],
    ),
    "lines at the left of the function keep their place": (
        """
        class A:
            def f(self):
                x = '''
        text
          more'''
        # comment
                return x
        """,
        ["def f(self):\n    x = '''\ntext\n  more'''\n# comment\n    return x"],
    ),
    "unicode before, in and behind the docstring": (
        '''
        class Ä:
            def ünï(self, größe="→"): "→ 🙂"; return "ß🙂"  # ü
        def g(a="é🙂"):
            """Doc: é🙂."""
            return "é"
        ''',
        ['def ünï(self, größe="→"): return "ß🙂"  # ü', 'def g(a="é🙂"):\n    return "é"'],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_text_of_functions(case):
    source, expected = CASES[case]
    assert sorted(functions_of_source(textwrap.dedent(source).encode())) == sorted(expected)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b'class A:\n\tdef f(self):\n\t\t"""Doc."""\n\t\treturn 1\n', ["def f(self):\n\treturn 1"]),
        (b'def f():\r\n    """Doc.\r\n    """\r\n\r\n    return """a\r\nb"""\r\n', ['def f():\n    return """a\nb"""']),
        (b'def f():\r    "doc"\r    return 1\r', ["def f():\n    return 1"]),
        (b'\x0cdef f():\n    "doc"\n\x0c\n    return 1\n', ["def f():\n    return 1"]),
        (b"class A:\n\x0c    def f(self):\n        return 1\n", ["def f(self):\n    return 1"]),
        (b"def f():\n    x = 1\n\x0c\n    return '\x1c'\n", ["def f():\n    x = 1\n\x0c\n    return '\x1c'"]),
        ("def f(): return '\u2028\x85'".encode(), ["def f(): return '\u2028\x85'"]),
        (b"\xef\xbb\xbfdef f(): return 1", ["def f(): return 1"]),
        (b"# coding: latin-1\ndef f(): '\xe9'; return '\xe4'", ["def f(): return 'ä'"]),
        (b'def f():\n    "doc"\n    return 1', ["def f():\n    return 1"]),
        (b'def f(): "doc"', []),
        (b"", []),
    ],
)
def test_tabs_line_ends_form_feeds_and_encodings(source, expected):
    assert functions_of_source(source) == expected


@pytest.mark.parametrize(
    "source", [b"def f(:", b"x = '\x00'", b"# coding: none-such\n", b"# coding: rot13\n", b"x = '\xff'", b"(" * 5000]
)
def test_source_that_does_not_parse_is_counted(source, tmp_path):
    (tmp_path / "bad.py").write_bytes(source)
    (tmp_path / "good.py").write_bytes(b"def f(): return '\\d'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an invalid escape is a warning of the corpus, not of ours
        texts = SourceBatch(
            tuple(SourceFile(tmp_path / name, name) for name in ("bad.py", "good.py")), functions_of_source
        ).read()
    assert texts.documents == ["def f(): return '\\d'"]
    assert texts.unparsable_files == 1


class WithoutDocstrings(ast.NodeTransformer):
    """A tree without docstrings, and without the white space in strings that moving a function left changes."""

    def _without(self, node):
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _without

    def visit_Constant(self, node):
        return ast.Constant(re.sub(r"[ \t]+", "", node.value) if isinstance(node.value, str) else node.value)


def outer_functions(node):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        else:
            yield from outer_functions(child)


def test_documents_parse_to_the_functions_without_docstrings():
    """Against syntax trees alone, on files of the standard library."""
    found = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[::4]:
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            documents = [ast.parse(text).body for text in functions_of_source(source)]
            functions = list(outer_functions(ast.parse(source)))
        assert all(len(body) == 1 for body in documents)
        kept = [f for f in functions if len(f.body) > 1 or ast.get_docstring(f, clean=False) is None]
        strip = WithoutDocstrings().visit
        expected = sorted(ast.dump(strip(function)) for function in kept)
        assert sorted(ast.dump(strip(body[0])) for body in documents) == expected
        found += len(expected)
    assert found > 500


def test_functions_are_read_without_importing_and_do_not_depend_on_the_workers(tmp_path, monkeypatch):
    package = tmp_path / "booby"
    package.mkdir()
    functions = [f'def f{i}():\n    "Doc."\n    return {i}\n' for i in range(9)]
    code = "".join(["raise SystemExit('imported')\n", *functions])
    (package / "__init__.py").write_text(code)
    (package / "bad.py").write_text("def f(:")
    monkeypatch.syspath_prepend(tmp_path)
    corpus = config.FunctionCorpus(kind="functions", packages=("booby",))
    assert open_reader(corpus, tmp_path).where == "functions of booby"
    data = folder_data(corpus=corpus)
    prepare_dataset(data, tmp_path)
    dataset = TokenDataset.open(tmp_path, data)
    assert "booby" not in sys.modules
    assert dataset.meta.provenance.source_files == {"booby": 2}
    assert dataset.meta.provenance.unparsable_files == 1
    decode = load_tokenizer("bytes").decode
    texts = [decode(dataset.document("train", i)) for i in range(dataset.n_documents)]
    assert len(texts) == 4
    assert set(texts) < {f"def f{i}():\n    return {i}" for i in range(9)}
    hashes = {dataset.data_hash}
    two = folder_data(corpus=corpus, workers=2)
    prepare_dataset(two, tmp_path)
    hashes.add(TokenDataset.open(tmp_path, two).data_hash)
    assert len(hashes) == 1
