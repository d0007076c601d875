from dataclasses import dataclass
from typing import Literal

import pytest

from neuropil.atlas.settings import as_json, override


@dataclass(frozen=True)
class Settings:
    steps: int = 2
    rate: float | None = 0.1
    sizes: tuple[int, ...] = (4, 2)
    pair: tuple[int, float] = (1, 2.0)
    rule: Literal["exact", "linear"] = "exact"
    name: str = "a"
    fast: bool = True


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("steps", "7", 7),
        ("rate", "1e-3", 1e-3),
        ("rate", "none", None),
        ("sizes", "8, 4,2", (8, 4, 2)),
        ("sizes", "8", (8,)),
        ("sizes", "", ()),
        ("pair", "3,4", (3, 4.0)),
        ("rule", "linear", "linear"),
        ("name", "b", "b"),
        ("fast", "no", False),
        ("sizes", (1,), (1,)),
    ],
)
def test_text_is_converted_by_the_type_of_the_field(field, text, value):
    assert getattr(override(Settings(), {field: text}), field) == value


@pytest.mark.parametrize(
    ("field", "text", "wanted"),
    [
        ("steps", "1.5", "int"),
        ("rate", "quick", r"float \| None"),
        ("sizes", "1,x", r"tuple\[int, ...\]"),
        ("pair", "1", r"tuple\[int, float\]"),
        ("rule", "odd", r"Literal\['exact', 'linear'\]"),
        ("fast", "maybe", "bool"),
    ],
)
def test_text_that_does_not_fit_is_named_with_the_type(field, text, wanted):
    with pytest.raises(ValueError, match=rf"Setting {field} must be {wanted}, got '{text}'"):
        override(Settings(), {field: text})


def test_an_unknown_field_is_answered_with_all_there_are():
    with pytest.raises(ValueError, match="no setting 'step'; the settings are steps, rate, sizes"):
        override(Settings(), {"step": "1"})


def test_settings_are_written_as_json_reads_them():
    assert as_json(Settings())["sizes"] == [4, 2]
