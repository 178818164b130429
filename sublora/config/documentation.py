"""What describes the settings to people and editors, written from the settings themselves.

`python -m sublora.config.documentation schema` prints workflow/schemas/config.schema.json, a JSON schema, and
`python -m sublora.config.documentation readme` prints config/README.md: what each key means, takes and reruns.
`make schema` writes both, and the reference configurations of the release (`reference FILE`); tests compare them.
"""

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from sublora.config.loading import load_settings
from sublora.config.section import STAGES, Mark, ReachesThrough, Section, stage_marks
from sublora.config.settings import Settings

INTRODUCTION = """\
# Configuration

Generated from the settings' docstrings by `make schema`; do not edit.

`config.yaml` in this folder is the full reproduction. A settings file holds the keys below; a key that has a default
may be left out, and so may a section all of whose keys have one. What a bound rests on has none: `delta` and its
division, `extra_bits`, `unit`, `min_tokens`, `independence`. Unknown keys are refused, and text is not converted to
numbers.

A settings file lies in a folder called `config`; `data/`, `results/` and `logs/` are beside that folder. To run a
variant, copy the file to `NAME/config/config.yaml`, change it and run `snakemake --directory NAME`, or change single
keys with `--config 'training={steps: 200}'`. The workflow writes the settings in force, with every key, to
`results/settings.yaml`, which its jobs read.

The workflow calls the command line of the Python package `sublora`, which has to be installed in the same environment
as Snakemake: `make setup` in a clone, or `pip install "sublora[workflow] @ git+<URL of the repository>@<tag>"`.

*Reruns* names the stages whose results depend on a key; the stages that follow them are rerun as well. The stages
are, in order, {stages}. A key without an entry changes the speed or what is printed, never a number.
"""
LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
NAMES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def readme_text() -> str:
    """The page as Markdown."""
    page = _Page()
    for name, field in Settings.model_fields.items():
        kinds = _sections(field.annotation)
        page.add(f"## {name}")
        if len(kinds) > 1:
            page.add("One of these kinds:")
        derived = [mark for mark in field.metadata if isinstance(mark, ReachesThrough)]
        page.add_kinds(kinds, name, stage_marks(field), unmarked="see below" if derived else "")
        if derived:
            numbers = (f"`{mark.name}` reruns {', '.join(mark.stages)}" for mark in derived)
            page.add(f"Runs that are there depend on this section only through derived numbers: {'; '.join(numbers)}.")
    for condition, sign in page.conditions.items():
        page.add(f"{sign} Only where {condition.removeprefix('Whether ')}")
    introduction = INTRODUCTION.replace("{stages}", ", ".join(STAGES))
    return "\n\n".join([introduction.rstrip(), *page.paragraphs]) + "\n"


class _Page:
    """Paragraphs so far, and what later ones refer to."""

    def __init__(self) -> None:
        self.paragraphs: list[str] = []
        self.conditions: dict[str, str] = {}
        """What a condition says, to the sign that stands for it."""
        self.shown: dict[tuple[type[Section], ...], str] = {}
        """Kinds that have their tables already, to the key they are under."""

    def add(self, paragraph: str) -> None:
        self.paragraphs.append(paragraph)

    def add_kinds(
        self, kinds: tuple[type[Section], ...], path: str, inherited: Sequence[Mark], unmarked: str = ""
    ) -> None:
        """Add a table of each section's own keys, followed by the sections inside it.

        unmarked: the text for the stages of a key that has no mark.
        """
        self.shown[kinds] = path
        for section in kinds:
            if len(kinds) > 1:
                self.add(f"### {path}, kind: {_kind(section)}")
            elif "." in path:
                self.add(f"### {path}")
            self.add(_documented(section))
            self.add_table(section, path, inherited, unmarked)

    def add_table(self, section: type[Section], path: str, inherited: Sequence[Mark], unmarked: str) -> None:
        """Add the table of a section's keys, and after it the sections inside it that have no tables yet."""
        rows = ["| key | takes | default | reruns | meaning |", "|---|---|---|---|---|"]
        schema, inner = section.model_json_schema(), []
        for key, field in section.model_fields.items():
            marks, below = stage_marks(field) or inherited, _sections(field.annotation)
            if not below:
                takes, stages = _takes(schema["properties"][key], schema), _stages(marks, self.conditions)
                stages = stages or unmarked
            elif below in self.shown:
                takes, stages = f"keys, as under {self.shown[below]}", _stages(marks, self.conditions)
            else:
                takes, stages = "keys, see below", ""
                inner.append((below, f"{path}.{key}", marks))
            default = "" if field.is_required() else _default(schema["properties"][key]["default"])
            rows.append(_row(f"`{key}`", takes, default, stages, field.description or ""))
        # Keys that a validator takes apart before the fields are read.
        for key in schema["properties"].keys() - section.model_fields.keys():
            node = schema["properties"][key]
            stages = _stages(inherited, self.conditions)
            rows.append(_row(f"`{key}`", f"{_takes(node, schema)}, may be left out", "", stages, node["description"]))
        self.add("\n".join(rows))
        for found in inner:
            self.add_kinds(*found)


def _row(*cells: str) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _default(value: Any) -> str:
    """A default as a settings file writes it."""
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _sections(annotation: Any) -> tuple[type[Section], ...]:
    """The sections that a key may hold: none, one, or the kinds of a union."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return (annotation,)
    if inspect.isclass(annotation):
        return ()
    return tuple(section for part in get_args(annotation) for section in _sections(part))


def _kind(section: type[Section]) -> str:
    """Value of `kind`, for one alternative of a union; else the section's name."""
    field = section.model_fields.get("kind")
    return f"`{get_args(field.annotation)[0]}`" if field else section.__name__


def _documented(section: type[Section]) -> str:
    return " ".join(_escaped(inspect.getdoc(section) or "").split())


def _stages(marks: Sequence[Mark], conditions: dict[str, str]) -> str:
    """Stages in their order; one that is reached under a condition has a sign, explained below the tables."""
    reached: dict[str, str] = {}
    for mark in marks:
        for stage in mark.stages or ():
            if mark.when is None:
                reached[stage] = ""
            else:
                reached.setdefault(stage, _sign(mark.when, conditions))
    return ", ".join(stage + reached[stage] for stage in STAGES if stage in reached)


def _sign(when: Callable[[Any], bool], conditions: dict[str, str]) -> str:
    text = inspect.getdoc(when) or when.__name__
    return conditions.setdefault(text, "\\*" * (len(conditions) + 1))


def _takes(node: dict[str, Any], schema: dict[str, Any]) -> str:
    """The values of a key in words, from its JSON schema."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return _or([f"`{value}`" for value in node["enum"]])
    if "anyOf" in node:
        return _or([_takes(part, schema) for part in node["anyOf"]])
    if node.get("type") == "object":
        return f"names, a {_takes(node['additionalProperties'], schema)} each"
    if node.get("type") == "array":
        if "prefixItems" in node:
            return f"a list of {len(node['prefixItems'])}: {_takes(node['prefixItems'][0], schema)}"
        return f"a list: {_takes(node['items'], schema)}"
    limits = [f"{words} {node[key]:g}" for key, words in LIMITS.items() if key in node]
    return " ".join([NAMES[node["type"]], " and ".join(limits)]).strip()


def _or(values: Sequence[str]) -> str:
    return " or ".join([", ".join(values[:-1]), values[-1]]) if len(values) > 1 else values[0]


def _cell(text: str) -> str:
    return " ".join(_escaped(text).replace("|", "\\|").split())


def _escaped(text: str) -> str:
    """Markdown would take <ratio> for a tag of HTML."""
    return text.replace("<", "&lt;")


def schema_text() -> str:
    """The schema as indented JSON, ending in a newline."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | Settings.model_json_schema(), indent=2) + "\n"


def reference_text(path: Path) -> str:
    """The settings of a file with every key written, so that a changed default leaves a reference as it was."""
    values = load_settings(path).model_dump(mode="json")
    return f"# {path} with every key.\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    texts: dict[str, Callable[..., str]] = {"schema": schema_text, "readme": readme_text, "reference": reference_text}
    print(texts[sys.argv[1]](*map(Path, sys.argv[2:])), end="")
