"""Names and messages: escaped, shortened, safe to print."""

import os

import pytest

from sppnet.runtime.names import counted, first_line, is_utf8, listing, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("grün 猫.jpg", "grün 猫.jpg"),
        ("a\nb", r"a\nb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        (os.fsdecode(b"\xff.jpg"), r"\xff.jpg"),
        ("\u200b", r"\u200b"),
    ],
)
def test_what_a_terminal_does_not_show_is_escaped_once(name, shown):
    assert printable(name) == printable(printable(name)) == shown


def test_names_with_undecodable_bytes_are_not_utf8():
    assert is_utf8("grün 猫.jpg")
    assert not is_utf8(os.fsdecode(b"caf\xe9.jpg"))


def test_counts_have_nouns_in_the_singular_or_plural():
    assert [counted(1, noun) for noun in ("epoch", "class", "box")] == ["1 epoch", "1 class", "1 box"]
    assert [counted(0, "core"), counted(1200, "box"), counted(2, "class")] == ["0 cores", "1,200 boxes", "2 classes"]


def test_a_listing_shows_five_names_and_counts_the_rest():
    assert listing([]) == ""
    assert listing(["a", "b\n"]) == r"a, b\n"
    assert listing(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\nwrong: a\nb")) == "wrong: a"
    assert first_line(KeyError()) == "KeyError"
