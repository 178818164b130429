"""The kinds of corpora: which reader reads the corpus that a settings class describes.

A new kind takes a settings class in `sublora.config.corpus`, a module with its reader, and a line in READERS.
The reader's class is called with the settings and the folder that relative paths start from, raises UserError if it
cannot find the corpus, and has the members of `sublora.data.corpora.reader.Reader`.
"""

import importlib
from pathlib import Path

from sublora.config.corpus import (
    AnyCorpus,
    DocstringCorpus,
    FolderCorpus,
    FunctionCorpus,
    HuggingFaceCorpus,
    JsonDocumentationCorpus,
    MarkovCorpus,
)
from sublora.data.corpora.reader import Reader

READERS: dict[type[AnyCorpus], str] = {
    HuggingFaceCorpus: "sublora.data.corpora.huggingface:HuggingFaceReader",
    FolderCorpus: "sublora.data.corpora.folder:FolderReader",
    DocstringCorpus: "sublora.data.corpora.python_sources:DocstringReader",
    FunctionCorpus: "sublora.data.corpora.functions:FunctionReader",
    JsonDocumentationCorpus: "sublora.data.corpora.json_documentation:JsonDocumentationReader",
    MarkovCorpus: "sublora.data.corpora.markov:MarkovReader",
}
"""Module and class of each kind's reader, by name, so that a module is imported only if its kind is read."""


def open_reader(corpus: AnyCorpus, root: Path) -> Reader:
    """Open a reader of the corpus that settings describe; relative paths start from `root`.

    UserError if the corpus cannot be found; TypeError if READERS lacks its kind.
    """
    if type(corpus) not in READERS:
        raise TypeError(f"no reader for {type(corpus).__name__}")
    module, _, name = READERS[type(corpus)].partition(":")
    reader: Reader = getattr(importlib.import_module(module), name)(corpus, root)
    return reader
