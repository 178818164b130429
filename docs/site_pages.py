"""Pages of the site that are made from something else: a hook of mkdocs, named in mkdocs.yml.

README, CHANGELOG, CONTRIBUTING and config/README.md stay where readers of the repository look for them; the reference
follows the command line's own help and the docstrings.
"""

import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES_OF_FILES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "reference/settings.md": "config/README.md",
}
"""Page to the file that it shows."""
FIRST = [f"guide/{name}.md" for name in ("installation", "tutorial", "running", "results")]
FIRST += ["glossary.md", "architecture.md"]
"""Pages that begin their part of the navigation; the others follow by name."""
SHOWN = {source: page for page, source in PAGES_OF_FILES.items()}
OUTSIDE = "(?:README|CHANGELOG|CONTRIBUTING|(?:demo|config|benchmarks|profiles|sublora|tests|workflow)/)"
"""How paths begin that lie beside docs/."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation: what lies in docs/, by folder, around the pages that are made here."""
    docs = Path(config.docs_dir)

    def pages_in(folder: str) -> list[str]:
        pages = [path.relative_to(docs).as_posix() for path in docs.glob(f"{folder}/*.md")]
        return sorted(pages, key=lambda page: (page not in FIRST, FIRST.index(page) if page in FIRST else 0, page))

    packages = [f"reference/{package}.md" for package in _packages()]
    config.nav = [
        "index.md",
        {"Guide": pages_in("guide")},
        {"In depth": pages_in(".")},
        {"Studies": pages_in("studies")},
        {"Reference": ["reference/settings.md", "reference/command_line.md", *packages]},
        {"Project": ["changelog.md", "contributing.md"]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file in docs/."""
    pages = {page: _rebased(page, source) for page, source in PAGES_OF_FILES.items()}
    pages["reference/command_line.md"] = _command_line()
    for package in _packages():
        pages[f"reference/{package}.md"] = f"# sublora.{package}\n\n::: sublora.{package}\n"
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links that leave docs/: to the page that shows such a file, else the mere words, as the site has no such file."""

    def link(found: re.Match[str]) -> str:
        shown = SHOWN.get(found["target"])
        return f"[{found['words']}]({'../' * page.file.src_uri.count('/')}{shown})" if shown else found["words"]

    return re.sub(r"\[(?P<words>[^\]]*)\]\((?:\.\./)+(?P<target>" + OUTSIDE + r"[^)#]*)(?:#[^)]*)?\)", link, markdown)


def _packages() -> list[str]:
    """Packages with a page of their own; the command line has one that shows its help."""
    return sorted({path.parent.name for path in ROOT.glob("sublora/*/__init__.py")} - {"cli"})


def _rebased(page: str, source: str) -> str:
    """The text of a file, its relative links as they are from the page."""

    def link(found: re.Match[str]) -> str:
        target, anchor = found["target"], found["anchor"] or ""
        path = (ROOT / source).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
        name = SHOWN.get(path) or path.removeprefix("docs/")
        return f"]({'../' * page.count('/')}{name}{anchor})"

    text = (ROOT / source).read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?:)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)", link, text)


def _command_line() -> str:
    """What `sublora --help` and the --help of every command say."""
    command = [
        sys.executable,
        "-m",
        "typer",
        "sublora.cli",
        "utils",
        "docs",
        "--name",
        "sublora",
        "--title",
        "Command line",
    ]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
