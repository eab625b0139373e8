"""`Config`, the base of every schema: frozen, strict, and able to say which key is wrong and what was meant."""

from __future__ import annotations

from types import NoneType
from typing import Annotated, Any, get_args

import pydantic
from pydantic import BeforeValidator, ConfigDict, SerializeAsAny, model_validator

from ..errors import ConfigError, did_you_mean
from ..registry import Registry


class Config(pydantic.BaseModel):
    """A frozen mapping with known keys only. Documented by the attribute docstrings or comments of its subclasses."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _off(cls, data: Any) -> Any:
        """`off` (or false) says none where a value may be none; null removes a recipe's key, which says default."""
        if not isinstance(data, dict):
            return data
        return {key: None if value is False and cls._may_be_off(key) else value for key, value in data.items()}

    @classmethod
    def _may_be_off(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        kinds = get_args(field.annotation) if field else ()
        return NoneType in kinds and bool not in kinds

    @classmethod
    def parse(cls, data: Any, where: str = "") -> Any:
        """Validate `data` into this schema; raises ConfigError whose `where` is the dotted key."""
        try:
            return cls.model_validate(data)
        except pydantic.ValidationError as error:
            raise _explain(cls, error, where) from None
        except ConfigError as error:  # from a point or validator: no ValueError, so pydantic lets it pass
            place = error.where or ""
            inside = place == where or place.startswith(f"{where}.")
            full = place if inside else ".".join(part for part in (where, place) if part)
            raise ConfigError(error.what, where=full or None, fix=error.fix) from None


def _explain(cls: type[Config], error: pydantic.ValidationError, where: str) -> ConfigError:
    """The most telling problem of a pydantic report: a misspelt key is both unknown and, if required, missing."""
    problems = error.errors(include_url=False)
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    key = ".".join([where, *map(str, first["loc"])]).strip(".")
    if first["type"] == "extra_forbidden":
        owner = _schema_at(cls, first["loc"][:-1])
        name = str(first["loc"][-1])
        return ConfigError(f"unknown key '{name}'", where=key, fix=did_you_mean(name, owner.model_fields))
    if first["type"] == "missing":
        return ConfigError(f"key '{first['loc'][-1]}' is required", where=key, fix=f"set {key}=...")
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{message} (got {first['input']!r})", where=key or cls.__name__)


def _schema_at(cls: type[Config], loc: tuple[int | str, ...]) -> type[Config]:
    """The schema class that `loc` leads to, walking through lists and mappings."""
    current: Any = cls
    for part in loc:
        if isinstance(current, type) and issubclass(current, pydantic.BaseModel) and part in current.model_fields:
            current = current.model_fields[str(part)].annotation
        current = _innermost_schema(current) or current
    return current if isinstance(current, type) and issubclass(current, Config) else cls


def _innermost_schema(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _innermost_schema(argument):
            return found
    return None


def _parse_point(registry: Registry, value: Any, default: str | None) -> Any:
    if isinstance(value, Config):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict) and default is not None:
        value = {"name": default, **value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        known = f"known: {', '.join(sorted(registry))}"
        raise ConfigError(f"{registry.kind} needs a 'name'", where=registry.kind, fix=known)
    options = {k: v for k, v in value.items() if k != "name"}
    try:
        schema = registry.load(value["name"])
    except ConfigError as error:
        raise ConfigError(error.what, where=registry.kind, fix=error.fix) from None
    return schema.parse({"name": value["name"], **options}, where=registry.kind)


def point(registry: Registry, default: str | None = None) -> Any:
    """A field that holds one point of an axis: `{name: NAME, **options}` or just `NAME`.

    The schema of the options is the registered class itself (a Config with a `name` field). A mapping without a name
    is one of `default`, if there is one.
    """
    return Annotated[SerializeAsAny[Config], BeforeValidator(lambda value: _parse_point(registry, value, default))]


def points(registry: Registry) -> Any:
    """A field that holds a list of points of an axis."""
    return list[point(registry)]  # type: ignore[misc]
