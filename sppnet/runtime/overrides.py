"""Formats values for Hydra's command line."""

import re
from typing import Any


def hydra_value(value: Any) -> str:
    """Formats a plain value so that Hydra reads the same value from the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ",".join(f"{hydra_value(key)}:{hydra_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(hydra_value, value)) + "]"

    text = str(value)
    is_word = re.fullmatch(r"[A-Za-z_/][\w./-]*", text, re.ASCII)
    if not isinstance(value, str) or (is_word and text.lower() not in ("null", "true", "false", "nan", "inf")):
        return text

    # A dollar with a brace is an interpolation for OmegaConf, and a quote ends the text for Hydra. Both take
    # backslashes literally unless they precede one of these.
    text = re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", text)
    text = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + ('\\"' if match[2] else ""), text)
    return f'"{text}"'
