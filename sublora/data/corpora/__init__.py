"""The kinds of corpora: which reader reads the corpus that a settings class describes.

A new kind takes a settings class in the union of `config.Data.corpus`, a module with its reader, and a line in
READERS. The reader's class is called with the settings and the folder that relative paths start at, raises
UserError if it cannot find the corpus, and has what `sublora.data.corpora.reader.Reader` lists.
"""

import importlib
from pathlib import Path

from sublora import config
from sublora.data.corpora.reader import Reader

READERS: dict[type[config.Section], str] = {
    config.HuggingFaceCorpus: "sublora.data.corpora.huggingface:HuggingFaceReader",
    config.FolderCorpus: "sublora.data.corpora.folder:FolderReader",
    config.DocstringCorpus: "sublora.data.corpora.docstrings:DocstringReader",
    config.FunctionCorpus: "sublora.data.corpora.functions:FunctionReader",
    config.JsonDocumentationCorpus: "sublora.data.corpora.json_documentation:JsonDocumentationReader",
    config.MarkovCorpus: "sublora.data.corpora.markov:MarkovReader",
}
"""Module and class of the reader of each kind, by name: a module is imported where its kind is read."""


def open_reader(corpus: config.Section, root: Path) -> Reader:
    """Reader of the corpus that settings describe; `root` is what relative paths are relative to.

    Raises UserError if the corpus cannot be found.
    """
    if type(corpus) not in READERS:
        raise TypeError(f"no reader for {type(corpus).__name__}")
    module, _, name = READERS[type(corpus)].partition(":")
    reader: Reader = getattr(importlib.import_module(module), name)(corpus, root)
    return reader
