"""YAML files of `key: value` lines."""

from pathlib import Path
from typing import Any

import yaml

from espnet_mla.common.errors import UserError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that occurs twice is an error: PyYAML takes the last one without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":  # of which there may be several
                continue
            line = key.start_mark.line + 1
            if (first := lines.setdefault((key.tag, key.value), line)) != line:
                raise _DuplicateKeyError(f"{key.value} occurs twice, in lines {first} and {line}")
        return node


class _DuplicateKeyError(yaml.YAMLError):
    pass


def read_mapping(path: Path) -> dict:
    """Read a YAML file of `key: value` lines.

    Raises:
        UserError: it holds something else, has a key twice, or can't be read.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except _DuplicateKeyError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines")
    return content
