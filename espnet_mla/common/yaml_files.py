"""YAML files of `key: value` lines."""

from pathlib import Path

import yaml

from espnet_mla.common.errors import UserError


def read_mapping(path: Path) -> dict:
    """Read a YAML file of `key: value` lines.

    Raises:
        UserError: it holds something else, or can't be read.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines")
    return content
