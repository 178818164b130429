"""YAML for settings: what the safe loader takes, without a key given twice and without aliases that explode."""

from typing import Any

import yaml

LARGEST_NODES = 100_000
"""Values in a file, counted as often as aliases repeat them. A settings file has some hundred."""


def read_yaml(text: str) -> Any:
    """The values of a YAML text. ValueError, in one line, if it is no YAML, ambiguous or too large."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except (KeyError, IndexError, AttributeError, TypeError):  # how the loader says that a !!tag does not fit
        raise ValueError("a value does not fit the tag (!!) before it") from None


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Nodes below and with a node, aliases expanded; `counted`: those known, 0 for one that is being counted.

    Equal nodes are one object, so this takes a step per node of the text. ValueError for a key given twice, a node
    inside itself, and more than LARGEST_NODES.
    """
    if (known := counted.get(id(node))) is not None:
        if not known:
            raise ValueError(f"{_where(node)}: an alias stands inside what it repeats")
        return known
    counted[id(node)] = 0
    total = 1
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node)
        total += sum(_count(key, counted) + _count(value, counted) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_count(item, counted) for item in node.value)
    if total > LARGEST_NODES:
        raise ValueError(
            f"{_where(node)}: more than {LARGEST_NODES:,} values, aliases counted as often as they are used"
        )
    counted[id(node)] = total
    return total


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen: dict[tuple[str, str], yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if (first := seen.setdefault((key.tag, key.value), key)) is not key:
            raise ValueError(f"key '{key.value}' is given twice, {_where(first)} and {_where(key)}; delete one of them")


def _where(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
