"""How much a recipe may hold: what its text stands for is counted before it is built."""

from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOST_BYTES = 2_000_000
"""The most bytes of a recipe's file."""
MOST_VALUES = 100_000
"""The most values of a recipe, each counted as often as an alias repeats it."""
MOST_DEPTH = 50
"""How deep lists and sections may lie in one another."""
MOST_PARTS = 20
"""The most parts of a dotted key."""
LONGEST_KEY = 500
"""The most characters of a dotted key."""
LARGEST = 2**63 - 1
"""The largest whole number."""
LONGEST_SHOWN = 120
"""The most characters of a value that a message shows."""
TOO_DEEP = f"brackets are nested too deeply (more than {MOST_DEPTH} levels)"
TOO_MANY = (
    f"stands for more than {MOST_VALUES:,} values (aliases such as *name repeat what they stand for); "
    "write fewer values"
)


def shortened(value: Any) -> str:
    """``repr(value)`` for a message; the middle of a long one is left out."""
    text = repr(value)
    if len(text) <= LONGEST_SHOWN:
        return text
    return f"{text[: LONGEST_SHOWN - 30]}...{text[-20:]} ({len(text):,} characters)"


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: bytes of a command line that are none cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_values(node: Node, key: str) -> None:
    """Count the values that a YAML node stands for, in a time that grows with its text alone.

    ``key`` is where the node lies. Raises ValueError when there are too many, when they lie too deep in
    one another, or when a node holds itself.
    """
    _Count(key).of(node, key)


class LimitedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which stops where a text goes too deep or holds too many values.

    Raises ValueError there: to read on would take minutes.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = self.nodes = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """The next node of the text."""
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        if self.depth > MOST_DEPTH + 1:
            raise ValueError(TOO_DEEP)
        if self.nodes > MOST_VALUES:
            raise ValueError(TOO_MANY)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Count:
    """The values and the depth of nodes; a node that aliases repeat is counted once and remembered."""

    def __init__(self, key: str):
        self.key = key
        self.known: dict[int, tuple[int, int]] = {}
        self.open: set[int] = set()

    def of(self, node: Node, top: str) -> tuple[int, int]:
        """The number of values in ``node``, itself included, and the levels below it."""
        if id(node) in self.open:
            raise ValueError(f"{top.split('.')[0]}: holds itself; write the values out")
        if id(node) not in self.known:
            self.open.add(id(node))
            inside = [self.of(item, top or name) for name, item in _items(node)]
            self.open.discard(id(node))
            values = 1 + sum(count for count, _ in inside)
            depth = 1 + max((levels for _, levels in inside), default=-1)
            self._check(values, depth, top)
            self.known[id(node)] = values, depth
        return self.known[id(node)]

    def _check(self, values: int, depth: int, top: str) -> None:
        where = f"{shortened(top)[1:-1]}: " if top else ""
        if depth > MOST_DEPTH:
            raise ValueError(f"{where}{TOO_DEEP}")
        if values > MOST_VALUES:
            raise ValueError(f"{where}{TOO_MANY}")


def _items(node: Node) -> list[tuple[str, Node]]:
    """The nodes in a list or section, with the names of a section's values."""
    if isinstance(node, SequenceNode):
        return [("", item) for item in node.value]
    if isinstance(node, MappingNode):
        pairs = [(_name(name), name, value) for name, value in node.value]
        return [("", name) for _, name, _ in pairs] + [(text, value) for text, _, value in pairs]
    return []


def _name(node: Node) -> str:
    """A section's key; nothing for one that is itself a list or a section."""
    return str(node.value)[:LONGEST_KEY] if isinstance(node, ScalarNode) else ""
