"""Configurations are resolved to plain values."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppnet.commands.settings import bound, named_keys, resolved, typed


def test_a_tilde_is_the_home_folder_wherever_the_value_comes_from():
    config = OmegaConf.create({"root": "~/images", "run": "${root}", "exclude": ["~/a", "a~", "~"], "seed": 3})
    home = str(Path.home())
    assert resolved(config) == {
        "root": f"{home}/images",
        "run": f"{home}/images",
        "exclude": [f"{home}/a", "a~", home],
        "seed": 3,
    }


def test_a_number_is_text_where_text_is_expected():
    def settings(*, runs: str, run: str | None, images: Any, seed: int, data: dict[str, Any]):
        """The schema of a configuration."""

    config = OmegaConf.create({"runs": 2026, "run": 5, "images": 5, "seed": 5, "data": {"root": 5}})
    assert typed(config, settings) == OmegaConf.merge(config, {"runs": "2026", "run": "5"})
    assert typed(OmegaConf.merge(config, {"run": None}), settings).run is None
    with pytest.raises(ValueError, match=r"^seed=one: must be a whole number$"):
        typed(OmegaConf.merge(config, {"seed": "one"}), settings)


HINTS = [
    *(int, float, bool, str, int | None, float | None, str | None, int | str, Any),
    *(
        list[int],
        list[int] | None,
        list[float],
        list[str],
        dict[str, Any],
        dict[str, Any] | None,
        dict[str, str] | None,
    ),
]
VALUES = [
    *(0, -3, 2**70, 0.0, 0.5, 7.0, math.inf, True, None, "", "a", "3", "0.5", "yes", "???", "a/b-c.1", "a b"),
    *([], [1], [1.5], ["a", ""], ["a", "???"], [True], [None], [[1]]),
    *({}, {"a": 1}, {"a": "b"}, {"a": "???"}, {"a": {"b": "???"}}, {"a": {"b": [1, "x", None]}}, {1: "a"}),
]


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_values_are_converted_and_refused_as_omegaconf_does_with_a_schema(hint):
    """But for an empty text, which is refused."""

    def target(*, key):
        pass

    target.__annotations__["key"] = hint
    schema = dataclasses.make_dataclass("Schema", [("key", hint)])
    accepted = 0
    for value in VALUES:
        section = OmegaConf.create({"key": value})
        try:
            merged = OmegaConf.merge(OmegaConf.structured(schema), section)
            expected = OmegaConf.to_container(merged, throw_on_missing=True)["key"]
        except OmegaConfBaseException:
            expected = ""
        if expected == "":
            with pytest.raises(ValueError, match=r"^a\.key[=:.[]"):
                bound(section, target, "a.")
            continue
        accepted += 1
        found = bound(section, target, "a.")["key"]
        assert (found, type(found)) == (expected, type(expected))
    assert accepted


def takes(
    *,
    count: int = 1,
    share: float | None = None,
    mirror: bool = True,
    name: str = "a",
    names: list[str] | None = None,
    sides: list[int] = [1],  # noqa: B006
    area: list[float] | None = None,
    devices: int | str = 1,
    files: dict[str, str] | str | None = None,
    options: dict[str, Any] | None = None,
):
    pass


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"count": "x"}, "part.count=x: must be a whole number"),
        ({"count": None}, "part.count=null: must be a whole number"),
        ({"count": True}, "part.count=true: must be a whole number"),
        ({"count": [1, None]}, "part.count=[1,null]: must be a whole number"),
        ({"share": "x"}, "part.share=x: must be a number, or null"),
        ({"mirror": "maybe"}, "part.mirror=maybe: must be true or false"),
        ({"mirror": None}, "part.mirror=null: must be true or false"),
        ({"name": ["a"]}, "part.name=[a]: must be text"),
        ({"name": {"a": {"b": 1}}}, "part.name={a:{b:1}}: must be text"),
        ({"names": "a"}, "part.names=a: must be a list, as in part.names=[a], or null"),
        ({"names": 5}, "part.names=5: must be a list, as in part.names=[5], or null"),
        ({"names": {"a": 1}}, "part.names={a:1}: must be a list of text, in brackets, or null"),
        ({"names": True}, "part.names=true: must be a list of text, in brackets, or null"),
        ({"sides": 3}, "part.sides=3: must be a list, as in part.sides=[3]"),
        ({"sides": None}, "part.sides=null: must be a list of numbers, in brackets"),
        ({"sides": "x"}, "part.sides=x: must be a list of numbers, in brackets"),
        ({"sides": [3, "x"]}, "part.sides[1]=x: must be a whole number"),
        ({"area": 0.2}, "part.area=0.2: must be a list of numbers, in brackets, or null"),
        ({"area": [0.2, None]}, "part.area[1]=null: must be a number"),
        ({"devices": [0, 1]}, "part.devices=[0,1]: must be a whole number, or text"),
        ({"devices": None}, "part.devices=null: must be a whole number, or text"),
        ({"options": 3}, "part.options=3: must be keys with values, as in part.options={KEY:VALUE}, or null"),
        ({"options": ["a"]}, "part.options=[a]: must be keys with values, as in part.options={KEY:VALUE}, or null"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_type_in_words(given, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        bound(OmegaConf.create(given), takes, "part.")


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("count=0: must be at least 1", "part.count=0: must be at least 1"),
        ("count=0 and share=2: must be one of them", "part.count=0 and part.share=2: must be one of them"),
        ("names: a is there twice; names: [a]", "part.names: a is there twice; names: [a]"),
        ("a.csv: leave names=[...] out", "a.csv: leave part.names=[...] out"),
        ("name=a: a name, account=3", "part.name=a: a name, account=3"),
        ("other.count=0, part.share=1, x/count=2, -count=3", "other.count=0, part.share=1, x/count=2, -count=3"),
        ("the count is 0", "the count is 0"),
    ],
)
@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_errors_of_a_section_name_keys_with_the_section(message, named, kind):
    with pytest.raises(kind) as refused, named_keys(part=takes):
        raise kind(message)
    assert str(refused.value) == named


def test_errors_of_the_system_and_other_kinds_are_left_as_they_are():
    with pytest.raises(PermissionError, match=r"^\[Errno 13\] count=3: 'a'$"), named_keys(part=takes):
        raise PermissionError(13, "count=3", "a")
    with pytest.raises(KeyError, match="'count=3'"), named_keys(part=takes):
        raise KeyError("count=3")
