"""A JSON file with a frozen type: one reader, one writer, tolerance for other versions, and an error with a remedy.

A missing file reads as None. A damaged one (truncated, edited by hand) raises :class:`Damaged`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from agit_core.errors import BadInput
from pipeline import storage

T = TypeVar("T")
Tree = dict[str, Any]
"""A JSON object, where it is not ours or has no fixed keys."""
Values = dict[str, float | None]
"""Values by name; None: not finite."""


class Damaged(BadInput):
    """A file that exists but cannot be parsed."""

    def __init__(self, uri: str, reason: str, remedy: str) -> None:
        super().__init__(f"{uri} is damaged ({reason}); {remedy}")
        self.reason = reason


class Record(BaseModel):
    """A frozen record; keeps fields of other versions, and has defaults for fields that they lack."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def plain(self) -> Tree:
        """The JSON object of the file, without fields that were never set."""
        return self.model_dump(exclude_unset=True)

    def but(self, **changes: Any) -> Self:
        """Return a copy with other values in some fields."""
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class File(Generic[T]):
    """A JSON file of a folder.

    Attributes:
        kind: what it holds.
        remedy: what to do when it is damaged.
        needs: the keys without which it says nothing, with their types.
    """

    name: str
    kind: type[T]
    remedy: str
    needs: tuple[tuple[str, type | tuple[type, ...]], ...] = ()

    def uri(self, folder: str) -> str:
        return storage.join(folder, self.name)

    def exists(self, folder: str) -> bool:
        return storage.exists(self.uri(folder))

    def at(self, uri: str) -> Tree | None:
        """The JSON object as it stands in a file, None where that is not there.

        Raises:
            Damaged: it is no JSON object, or lacks what it needs.
            RunFailed: the storage does not answer.
        """
        try:
            tree = storage.read_json(uri)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except IsADirectoryError:
            raise Damaged(uri, "it is a folder", self.remedy) from None
        except BadInput:  # a storage that cannot be used is not a damaged file
            raise
        except (ValueError, RecursionError):
            raise Damaged(uri, "it is not valid JSON", self.remedy) from None
        if not isinstance(tree, dict):
            raise Damaged(uri, "it does not hold an object", self.remedy)
        for key, kind in self.needs:
            if not isinstance(tree.get(key), kind):
                raise Damaged(uri, f"it has no usable '{key}'", self.remedy)
        return tree

    def read(self, folder: str) -> T | None:
        """The content, None where the file is not there.

        Raises:
            Damaged: it is no JSON object, not one of this kind, or lacks what it needs.
            RunFailed: the storage does not answer.
        """
        return self.read_at(self.uri(folder))

    def read_at(self, uri: str) -> T | None:
        """:meth:`read`, of a file given by its own URI."""
        tree = self.at(uri)
        return None if tree is None else self.parse(tree, uri)

    def parse(self, tree: Tree, uri: str) -> T:
        """The content of a JSON object from :meth:`at`."""
        try:
            return self._adapter.validate_python(tree)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Damaged(uri, f"{where}: {first['msg'].lower()}", self.remedy) from None

    def peek(self, folder: str) -> T | None:
        """As :meth:`read`, but None for a damaged file too."""
        try:
            return self.read(folder)
        except Damaged:
            return None

    def write(self, folder: str, value: T) -> None:
        tree = value.plain() if isinstance(value, Record) else value
        storage.write_json(self.uri(folder), tree)

    @cached_property
    def _adapter(self) -> TypeAdapter[T]:
        return TypeAdapter(self.kind)
