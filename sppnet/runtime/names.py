"""Makes names and messages safe to print on a terminal, and checks names against the known ones."""

from collections.abc import Collection, Sequence

_LONGEST_LINE = 1000  # letters of an error that a file from a stranger caused


def printable(text: str) -> str:
    r"""Escapes every character that a terminal would not show as itself. Escaping twice changes nothing more.

    Names of files may contain newlines, escape sequences and bytes that are not UTF-8: a newline becomes the two
    characters "\n", and the byte 0xff, which `os.fsdecode` decodes as "\udcff", the four characters "\xff".
    """
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def is_utf8(name: str) -> bool:
    """Whether a name is valid text, without undecodable bytes as `os.fsdecode` passes them on."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def counted(count: int, noun: str) -> str:
    """Returns a number with a regular noun: "1 epoch", "1,200 images", "2 classes"."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith(('s', 'x')) else 's'}"


def listing(names: Sequence[str]) -> str:
    """The first five names, printable, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(printable, names[:5])) + more


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to 1,000 letters, or its type if the message is empty."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ..."


def check_names(key: str, given: Collection[str], known: Collection[str]) -> None:
    """Raises ValueError, with `key` and the known names, for a given name that is not known."""
    for name in given:
        if name not in known:
            raise ValueError(f"{key}={name!r}: must be one of {', '.join(known)}")
