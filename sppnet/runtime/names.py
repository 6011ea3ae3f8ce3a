"""Names and messages as they may be shown on a terminal."""

from collections.abc import Sequence


def printable(text: str) -> str:
    r"""The text with every character escaped that a terminal would not show as itself. Applying it again is no change.

    Names of files may hold newlines, escape sequences and bytes that are not UTF-8: a newline becomes "\n" in two
    characters, the byte 0xff, which `os.fsdecode` gives as "\udcff", becomes "\xff" in four.
    """
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def is_utf8(name: str) -> bool:
    """Whether a name is text, and not bytes of another encoding as `os.fsdecode` gives them."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def listing(names: Sequence[str]) -> str:
    """The first names, as they may be shown, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(printable, names[:5])) + more


def first_line(error: BaseException) -> str:
    """The first line of the message of an error, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
