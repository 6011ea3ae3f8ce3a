"""Whether the package is in a checkout of the project or installed, and how its commands are called."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder of the package: the checkout, or site-packages


def is_checkout() -> bool:
    """Whether scripts/ is beside the package."""
    return (ROOT / "scripts" / "train.py").is_file()


def shown_command(name: str) -> str:
    """Returns a command as messages show it: "python scripts/train.py" inside a checkout, "sppnet train" elsewhere.

    An editable installation of a checkout is used from other folders, too, where scripts/ does not exist.
    """
    return f"python scripts/{name}.py" if is_checkout() and Path.cwd() == ROOT else f"sppnet {name}"
