"""What is recorded of the network behind transferred features and detections, and how tables name it."""

from collections.abc import Sequence
from typing import Any

from sppnet.results.runs import VARIANTS
from sppnet.runtime.rules import SEED, SIDES, TEXT, Rule

_TEXT_OR_NULL = Rule("null or text", lambda value: value is None or TEXT.holds(value))
_SEED_OR_NULL = Rule(f"null or {SEED.words}", lambda value: value is None or SEED.holds(value))
_FLAG = Rule("true or false", lambda value: type(value) is bool)

# The rules of a record of a network.
NETWORK_RECORD = {
    "name": TEXT,
    "levels": SIDES,
    "variant": _TEXT_OR_NULL,
    "trained_on": _TEXT_OR_NULL,
    "on_imagenet": _FLAG,
    "seed": _SEED_OR_NULL,
    "setting": TEXT,
    "text": TEXT,
}


def record_label(network: dict[str, Any]) -> str:
    """Names a network by its architecture and pyramid."""
    levels = "no SPP" if network["levels"] is None else f"SPP {', '.join(map(str, network['levels']))}"
    return f"{network['name']}, {VARIANTS.get(network['variant'] or '', levels)}"


def record_training(network: dict[str, Any]) -> str:
    """Names what a network was trained on."""
    if network["trained_on"] is None:
        return "nothing (random weights)"
    if network["trained_on"] == "timm":
        return "timm's weights"
    return "ImageNet" if network["on_imagenet"] else str(network["trained_on"])


def numbered_labels(names: Sequence[tuple[str, ...]], settings: Sequence[str | None]) -> list[str]:
    """Returns the first text of each name, with a number where several settings have the same name.

    Args:
        names: what a reader tells networks apart by.
        settings: what they are told apart by; None for one that has none and gets no number.
    """
    of_name: dict[tuple[str, ...], list[str]] = {}
    for name, setting in zip(names, settings, strict=True):
        others = of_name.setdefault(name, [])
        if setting is not None and setting not in others:
            others.append(setting)
    return [
        f"{name[0]} [{of_name[name].index(setting) + 1}]" if setting is not None and len(of_name[name]) > 1 else name[0]
        for name, setting in zip(names, settings, strict=True)
    ]
