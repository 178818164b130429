"""From a corpus to token files: train.bin, val.bin, test.bin, the document index and meta.json.

The text is read once, in worker processes, and the tokens once. Documents are ordered by a digest of their text, keyed
with the shuffle seed (see `sublora.data.order`): the first are val, the next test, the rest train. The files therefore
depend only on the set of texts and the seed, not on the order of the corpus or the number of workers, and no text is in
two splits. Texts of another corpus can be left out by their keys. Memory does not grow with the corpus, except for 16
bytes per document, and about 40 more if documents have sources.

With data.unit: source, a text that occurs in several sources stays with one of them, drawn by a keyed digest of the
source's name. What is left of a source is a unit. Units are ordered by another digest, and whole units go to val and
test until each holds as many documents as the settings ask for.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sublora import config
from sublora.data.base_and_target import TEXT_KEYS_FILE, TextKeys, base_data, open_text_keys, write_text_keys
from sublora.data.corpora import open_reader
from sublora.data.corpora.reader import Reader
from sublora.data.dataset import (
    dataset_folder,
)
from sublora.data.order import (
    Spill,
)
from sublora.data.tokenize import tokenize_corpus
from sublora.data.tokenizers import (
    OF_THE_BASE,
    TokenizerFacts,
    import_tokenizer,
    tokenizer_facts,
)
from sublora.data.write import write_dataset
from sublora.system.errors import UserError
from sublora.system.files import atomic_path, remove_stale_temporaries, writing
from sublora.system.locks import ProcessLock
from sublora.system.pretrained import pretrained_folder

LOCK_FILE = ".prepare.lock"
WORK_FOLDER = ".prepare"


def prepare_dataset(
    data: config.Data,
    root: Path,
    *,
    exclude: TextKeys | None = None,
    pretrained: Path | None = None,
    started: Callable[[], None] | None = None,
) -> Path:
    """Build the dataset that settings describe, without the texts of `exclude`, and return its folder.

    The folder, {root}/data/{name}, is always built anew. Each file is written whole or not at all, meta.json last;
    until it is there, the dataset does not open. Temporary files in that folder take about as much space as the result,
    twice as much with units.

    Args:
        data: the settings of the dataset.
        root: the folder above data/.
        exclude: keys of texts that are left out, made with the same shuffle seed.
        pretrained: with data.tokenizer: base, the folder of the model whose tokenizer makes the tokens.
        started: called once the corpus is open.

    Raises:
        UserError: the corpus cannot be read or holds too few documents, the tokenizer lacks its vocabulary, or another
            process is writing to the same folder.
        ValueError: `exclude` was made with another seed.
    """
    if exclude is not None and exclude.shuffle_seed != data.shuffle_seed:
        raise ValueError(f"keys of seed {exclude.shuffle_seed} say nothing of keys of seed {data.shuffle_seed}")
    # The text goes to records on disk first: their order is known only when all are there.
    tokenizer, reader, folder = _open_corpus(data, root, started, pretrained)
    with _work_folder(folder) as work, Spill(work / "records", exclude) as spill, _progress() as progress:
        counts = tokenize_corpus(reader, data, tokenizer, progress, spill)
        write_dataset(folder, data, tokenizer, spill, counts, reader.provenance(), progress)
    return folder


def prepare_base_dataset(settings: config.Settings, root: Path, *, started: Callable[[], None] | None = None) -> Path:
    """Build the dataset that the base is trained on, and return its folder.

    Beside the dataset's files, text_keys.bin holds the keys of all texts of the base's corpus, including those that are
    too short or have too few tokens. meta.json has their number and sha256 in provenance.text_keys.

    Raises what `prepare_dataset` raises.
    """
    data = base_data(settings)
    try:
        tokenizer, reader, folder = _open_corpus(data, root, started)
        with (
            _work_folder(folder) as work,
            Spill(work / "records") as spill,
            Spill(work / "texts") as texts,
            _progress() as progress,
        ):
            counts = tokenize_corpus(reader, data, tokenizer, progress, spill, texts)
            # The keys are renamed after meta.json is written: opening refuses keys that are not those of meta.json.
            with atomic_path(folder / TEXT_KEYS_FILE) as temporary:
                keys = write_text_keys(temporary, texts.sorted_keys())
                provenance = reader.provenance() | {"text_keys": keys}
                write_dataset(folder, data, tokenizer, spill, counts, provenance, progress)
    except UserError as error:
        raise UserError(f"dataset of the base (its keys are base.corpus and so on, not data.corpus): {error}") from None
    return folder


def prepare_all(settings: config.Settings, root: Path, *, started: Callable[[], None] | None = None) -> Path:
    """Build all datasets that settings describe, and return the folder of the target, which the bounds are about.

    A trained base's dataset is built first, and no text of its corpus enters the target's.

    Raises what `prepare_dataset` raises.
    """
    if not isinstance(settings.base, config.TrainedBase):
        pretrained = None
        if isinstance(settings.base, config.PretrainedBase) and settings.data.tokenizer == OF_THE_BASE:
            pretrained = pretrained_folder(settings.base.path, settings.base.revision, root)
        return prepare_dataset(settings.data, root, pretrained=pretrained, started=started)
    prepare_base_dataset(settings, root, started=started)
    return prepare_dataset(settings.data, root, exclude=open_text_keys(settings, root))


def _open_corpus(
    data: config.Data, root: Path, started: Callable[[], None] | None, pretrained: Path | None = None
) -> tuple[TokenizerFacts, Reader, Path]:
    """Open the corpus; return the tokenizer, the corpus's reader and the dataset's folder."""
    folder = dataset_folder(root, data)
    tokenizer = tokenizer_facts(data.tokenizer) if pretrained is None else import_tokenizer(pretrained, folder)
    tokenizer.load()  # before downloading a corpus that could not be tokenized
    reader = open_reader(data.corpus, root)
    if started is not None:
        started()
    return tokenizer, reader, folder


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder for temporary files, held by one process at a time and removed at the end."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(folder))
        folder.mkdir(parents=True, exist_ok=True)
        lock = ProcessLock(folder / LOCK_FILE)
        if not lock.acquire():
            raise UserError(f"{folder}: another `sublora prepare` is writing here; wait for it or stop it")
        stack.callback(lock.release)
        work = folder / WORK_FOLDER
        # Remove what a killed process left:
        shutil.rmtree(work, ignore_errors=True)
        remove_stale_temporaries(folder)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _progress() -> Progress:
    """Return a progress bar on stderr if that is a terminal, else one that shows nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
