"""A section of options: a frozen dataclass that checks its own fields.

    @dataclasses.dataclass(frozen=True)
    class Steps(Section):
        SECTION = "steps"
        number: Positive
        kind: Literal["long", "short"]

`Steps.of({"number": 0, "kind": "long"})` raises "steps.number must be at least 1, got
0": a message names the field, what came and what was expected.
"""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from experiments.errors import ConfigError
from jebm.names import did_you_mean, unknown_name_message


class Range(NamedTuple):
    """The numbers from `low` to `high`, both included."""

    low: float
    high: float = math.inf


Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Pair = Annotated[int, Range(2)]  # at least two


@dataclasses.dataclass(frozen=True)
class Section:
    """The fields of one section of a config: a base of frozen dataclasses.

    The annotations are checked when it is made: types, `Literal` choices, `Range`.
    Messages name a field as "SECTION.field", where SECTION is the class's.
    """

    SECTION: ClassVar[str] = ""

    def __post_init__(self):
        for name, hint in _hints(type(self)).items():
            value = checked(self.full_name(name), hint, getattr(self, name))
            object.__setattr__(self, name, value)

    @classmethod
    def full_name(cls, field: str) -> str:
        """Returns the full name of a field, as the command line has it."""
        return f"{cls.SECTION}.{field}" if cls.SECTION else field

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Makes a section from a mapping.

        Raises:
          ConfigError: for a field that is unknown or missing, naming it.
        """
        check_mapping(cls.SECTION, values)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise ConfigError(_unknown_field(cls.SECTION, fields, name))
        for name, field in fields.items():
            if field.default is dataclasses.MISSING and name not in values:
                raise ConfigError(f"config.{cls.full_name(name)} is missing")
        return cls(**values)


def check_mapping(name: str, value: Any) -> None:
    """Refuses a section that is no mapping of fields."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"config.{name} must be a section of fields, got {value!r}")


def _unknown_field(section, known, field):
    where = f"config.{section}" if section else "config"
    return (
        f"{where} has no field {field!r}; known: {sorted(known)}"
        f"{did_you_mean(field, known)}"
    )


def _hints(cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def checked(name: str, hint: Any, value: Any) -> Any:
    """Returns `value` as `hint` has it; raises a ConfigError where it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = checked(name, arguments[0], value)
        low, high = arguments[1]
        if not low <= value <= high:
            bounds = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
            raise ConfigError(f"{name} must be {bounds}, got {value}")
        return value
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(unknown_name_message(name, value, arguments))
        return value
    if origin in (typing.Union, types.UnionType):  # with None
        kind = next(a for a in arguments if a is not type(None))
        return None if value is None else checked(name, kind, value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} must be a tuple, got {value!r}")
        fixed = arguments[-1] is not Ellipsis
        if fixed and len(value) != len(arguments):
            raise ConfigError(f"{name} must have {len(arguments)} values, got {value}")
        return tuple(checked(name, arguments[0], v) for v in value)
    if origin is dict:
        check_mapping(name, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise ConfigError(f"{name} must be finite, got an integer beyond 1e308")
        return float(value)
    if hint in (int, float, str, bool):
        if type(value) is not hint:
            raise ConfigError(f"{name} must be {_KINDS[hint]}, got {value!r}")
        if hint is float and not math.isfinite(value):
            raise ConfigError(f"{name} must be finite, got {value}")
    return value


_KINDS = {int: "an integer", float: "a number", str: "a string", bool: "True or False"}
