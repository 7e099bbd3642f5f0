"""What every format gives to those who read tensors out of it and write them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from migrate_ckpt.foreign import ForeignObject

if TYPE_CHECKING:
    from migrate_ckpt.formats.mapped import MappedSource
    from migrate_ckpt.formats.pickle_reader import TensorBuilder
    from migrate_ckpt.formats.source import FileSource
    from migrate_ckpt.formats.verification import Checksum


class Stored(Protocol):
    """Where the bytes of one storage are: offset and size in bytes of the source."""

    @property
    def data_offset(self) -> int: ...
    @property
    def size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds.

    Attributes:
        value: The checkpoint, with foreign objects in it.
        protocol: The protocol of its pickle; 2 for the older 0 and 1, which are not written any more, and for files
            without a pickle.
        globals: The path of every global that the pickle names, in order of first use.
        calls: Every object that it makes by a call, or of a class, that is kept and not answered.
        hidden_calls: Calls whose results are thrown away again; they will not be written back.
        nested: Of the globals those that are reached through another one, as `Outer.Inner` is.
    """

    value: Any
    protocol: int = 2
    globals: tuple[str, ...] = ()
    calls: list[ForeignObject] = field(default_factory=list)
    hidden_calls: list[ForeignObject] = field(default_factory=list)
    nested: frozenset[str] = frozenset()

    @classmethod
    def joined(cls, value: Any, parts: Sequence[Contents]) -> Contents:
        """Return what several files hold together; the value is the checkpoint that they make."""
        return cls(
            value,
            max(part.protocol for part in parts),
            tuple(dict.fromkeys(path for part in parts for path in part.globals)),
            [call for part in parts for call in part.calls],
            [call for part in parts for call in part.hidden_calls],
            frozenset().union(*(part.nested for part in parts)),
        )


class Container(Protocol):
    """An opened file of some format.

    Attributes:
        format: The format's name, as reports and `inspect` say it.
        source: Where its bytes come from.
        storages: Where the bytes of each storage are, by the key that persistent ids name it by.
    """

    @property
    def format(self) -> str: ...
    @property
    def source(self) -> FileSource: ...
    @property
    def storages(self) -> Mapping[str, Stored]: ...
    @property
    def checksums(self) -> Iterable[Checksum]:
        """What the file says of ranges of its bytes, in their order; none where the format has no checksums."""
        ...

    @property
    def mapped(self) -> MappedSource:
        """The file in memory, mapped when it is asked for first."""
        ...

    def read(self, builder: TensorBuilder) -> Contents:
        """Read all but the bytes of tensors.

        Raises:
            UnreadableCheckpoint: It is damaged, or holds what no checkpoint holds.
        """
        ...
