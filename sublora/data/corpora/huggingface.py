"""Documents of a dataset on the Hugging Face hub, or in a folder of parquet files, read with `datasets`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sublora import config
from sublora.data.corpora.reader import TextBatch, source_name
from sublora.system.errors import UserError

if TYPE_CHECKING:
    import datasets

BATCH_ROWS = 256
PARQUET_CONVERSION = "refs/convert/parquet"


class HuggingFaceReader:
    """Downloads the dataset into the cache of `datasets` and reads it from there, memory-mapped.

    The cache holds the downloaded parquet files and their conversion to Arrow.
    """

    unit = "documents"

    def __init__(self, settings: config.HuggingFaceCorpus, root: Path) -> None:
        import datasets

        self.settings = settings
        self.where = f"dataset {settings.dataset}, split {settings.split}"
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        folder = Path(root) / settings.dataset
        self._version = datasets.__version__
        self._dataset, self._commit = _load(str(folder) if folder.is_dir() else settings.dataset, settings)
        for key in ("text_field", "unit_field"):
            field = getattr(settings, key)
            if field is not None and field not in self._dataset.column_names:
                raise UserError(
                    f"data.corpus.{key}: {self.where} has no field '{field}', "
                    f"found {', '.join(self._dataset.column_names)}"
                )
        self.total = self._dataset.num_rows

    def batches(self) -> Iterator[TextBatch]:
        text_field, unit_field = self.settings.text_field, self.settings.unit_field
        fields = sorted({field for field in (text_field, unit_field) if field is not None})
        rows = self._dataset.select_columns(fields).with_format("arrow")
        for number, table in enumerate(rows.iter(batch_size=BATCH_ROWS)):
            first_row = number * BATCH_ROWS
            texts = [
                value if isinstance(value, str) else self._refuse(value, text_field, row, "text")
                for row, value in enumerate(table[text_field].to_pylist(), start=first_row)
            ]
            if unit_field is None:
                yield TextBatch(texts)
                continue
            sources = [
                source_name(value) or self._refuse(value, unit_field, row, "text or a whole number")
                for row, value in enumerate(table[unit_field].to_pylist(), start=first_row)
            ]
            yield TextBatch(texts, [*sources])

    def _refuse(self, value: object, field: str, row: int, expected: str) -> NoReturn:
        raise UserError(f"{self.where}: row {row} holds {type(value).__name__} in field '{field}', expected {expected}")

    def provenance(self) -> dict[str, object]:
        return {"rows": self.total, "commit": self._commit, "datasets_version": self._version}


def _load(path: str, settings: config.HuggingFaceCorpus) -> tuple["datasets.Dataset", str | None]:
    """Load the dataset's split; return it with the commit that the revision stands for, None for a local dataset."""
    import datasets

    where = f"data.corpus.dataset '{settings.dataset}'"
    # Prepare the split; each kind of failure gets its own advice: no network, no such dataset, no readable format.
    try:
        builder = datasets.load_dataset_builder(path, revision=settings.revision)
        builder.download_and_prepare()
        splits = list(builder.info.splits or ())
        if settings.split not in splits:
            raise UserError(f"data.corpus.split '{settings.split}': {where} has the splits {', '.join(splits)}")
        return builder.as_dataset(split=settings.split), _commit(builder.config.data_files)
    except ConnectionError as error:
        raise UserError(
            f"{where}: cannot reach the Hugging Face hub ({_first_line(error)}); run `sublora prepare` on a machine "
            "with internet access, or copy the cache (HF_HOME) of such a machine here and set HF_HUB_OFFLINE=1"
        ) from None
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise UserError(
            f"{where}: not found at revision '{settings.revision}' ({_first_line(error)}); "
            "expected a dataset's identifier on the hub or a folder of parquet files"
        ) from None
    except (RuntimeError, ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        raise UserError(
            f"{where}: `datasets` cannot load revision '{settings.revision}' ({_first_line(cause)}); "
            f"a dataset with a loading script needs revision: {PARQUET_CONVERSION}"
        ) from None


def _commit(data_files: object) -> str | None:
    """Return the commit in the addresses hf://datasets/OWNER/NAME@COMMIT/FILE; None for files on this machine."""
    files = [name for names in data_files.values() for name in names] if isinstance(data_files, dict) else []
    commits = {name.split("@", 1)[1].split("/", 1)[0] for name in files if name.startswith("hf://") and "@" in name}
    return commits.pop() if len(commits) == 1 else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
