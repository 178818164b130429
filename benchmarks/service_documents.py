"""Write the newest service documentation as JSON lines, a few texts of each service: documents for `sublora adapt`.

The texts are those of config/smollm2.yaml, where `make fetch-smollm2` has put the two wheels. Of each service the
texts with the smallest sha256 are kept, a choice that knows no model. All of a service's texts are scored where
services are the units, so their number is what the scores cost.
"""

import argparse
import collections
import hashlib
import json
from pathlib import Path

from sublora import config
from sublora.data.corpora import open_reader
from sublora.system.files import write_bytes


def chosen_texts(settings: config.Settings, root: Path, per_service: int) -> dict[str, list[str]]:
    """Return at most `per_service` texts of each service, in the order of their sha256, by the service's name."""
    found: dict[str, dict[bytes, str]] = collections.defaultdict(dict)
    for batch in open_reader(settings.data.corpus, root).batches():
        texts = batch.read()
        for text, source in zip(texts.documents, texts.sources or [], strict=True):
            if source is not None and len(text) >= settings.data.min_characters:
                found[Path(source).name][hashlib.sha256(text.encode()).digest()] = text
    return {name: [texts[key] for key in sorted(texts)[:per_service]] for name, texts in sorted(found.items())}


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path, default=Path("config/smollm2.yaml"))
    parser.add_argument("--root", type=Path, default=Path("smollm2"), help="the folder with documents/")
    parser.add_argument("--per-service", type=int, default=2)
    arguments = parser.parse_args()
    services = chosen_texts(config.load_settings(arguments.config), arguments.root, arguments.per_service)
    lines = [
        json.dumps({"text": text, "service": name}, ensure_ascii=False)
        for name, texts in services.items()
        for text in texts
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(arguments.out, ("\n".join(lines) + "\n").encode())
    print(f"{len(lines):,} texts of {len(services):,} services -> {arguments.out}")


if __name__ == "__main__":
    main()
