"""Typed reading of a GGUF's metadata. Pure."""

from collections.abc import Mapping

Value = str | int | float | bool | list[str] | list[int] | list[float]


class RefusedError(Exception):
    """This GGUF isn't converted; the text says why, and holds no path."""


class Metadata:
    """The key-value part of a GGUF as plain Python values.

    Every reader raises RefusedError for a key that is missing or of another type.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str) -> str:
        value = self._values.get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def integer(self, key: str) -> int:
        """A whole number, 0 or greater."""
        value = self._values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(key, "a whole number")
        return value

    def real(self, key: str) -> float:
        value = self._values.get(key)
        if not isinstance(value, float):
            raise self._wrong(key, "a number")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def texts(self, key: str) -> list[str]:
        value = self._values.get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list of texts")
        texts = [item for item in value if isinstance(item, str)]
        if len(texts) != len(value):
            raise self._wrong(key, "a list of texts")
        return texts

    def integers(self, key: str) -> list[int]:
        value = self._values.get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list of whole numbers")
        integers = [item for item in value if isinstance(item, int)]
        if len(integers) != len(value):
            raise self._wrong(key, "a list of whole numbers")
        return integers

    def _wrong(self, key: str, expected: str) -> RefusedError:
        found = "is missing" if key not in self._values else f"is not {expected}"
        return RefusedError(f"cannot convert: the metadata key {key} {found}")
