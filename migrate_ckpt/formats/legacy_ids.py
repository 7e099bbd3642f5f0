"""The persistent ids of the stream that torch wrote before 1.6: like the zip's, and two things more.

A storage may be a part of another (only early versions of torch wrote that), and a class of a module may stand with its
source code.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, NamedTuple, NoReturn

from migrate_ckpt.errors import UnreadableCheckpoint, UnwritableCheckpoint
from migrate_ckpt.foreign import ForeignGlobal, global_path
from migrate_ckpt.formats.pickle_reader import TensorBuilder
from migrate_ckpt.formats.plain_values import NOT_FOLDED, Fold
from migrate_ckpt.formats.storages import StorageHandle, check_layout, check_persistent_id


class StorageView(NamedTuple):
    """A part of a storage, which early versions of torch could save as a storage. Offset and size are in elements."""

    root: StorageHandle
    offset: int
    size: int

    def __deepcopy__(self, memo: dict[int, Any]) -> StorageView:
        return StorageView(copy.deepcopy(self.root, memo), self.offset, self.size)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UnwritableCheckpoint(
            "the checkpoint holds a part of a storage outside any tensor, which only early versions of torch "
            "could save: drop it in a migration"
        )


class NamedStorages:
    """Notes what the persistent ids of a pickle say, and builds no tensor (see `pickle_reader.TensorBuilder`)."""

    def __init__(self) -> None:
        self.itemsizes: dict[str, int] = {}
        self.sources_of: list[str] = []

    def storage(self, pid: object) -> Any:
        module = _module_of(pid)
        if module is not None:
            found, has_source = module
            self.sources_of += [global_path(found)] if has_source else []
            return found
        handle = StorageHandle(*check_persistent_id(_split(pid)[0]), container=None)
        # A storage that is named again with another type counts as what it was named first, as for torch.
        self.itemsizes.setdefault(handle.key, handle.itemsize)
        return handle

    def constant(self, module: str, name: str) -> Any:
        return NOT_FOLDED

    def folds(self) -> dict[tuple[str, str], Fold]:
        return {}

    def finish(self) -> None:
        pass


class LegacyTensors:
    """Understands a stream's persistent ids, and leaves the tensors to another builder."""

    def __init__(self, builder: TensorBuilder) -> None:
        self._builder = builder
        self.constant = builder.constant
        self.finish = builder.finish

    def storage(self, pid: object) -> Any:
        module = _module_of(pid)
        if module is not None:
            return module[0]
        storage, view = _split(pid)
        root = self._builder.storage(storage)
        return root if view is None else StorageView(root, *_check_view(root, view))

    def folds(self) -> dict[tuple[str, str], Fold]:
        return {path: _as_today(fold) for path, fold in self._builder.folds().items()}


def _module_of(pid: object) -> tuple[ForeignGlobal, bool] | None:
    """The class in `("module", class, file, source)`, and whether there is source; None for any other id."""
    if not (type(pid) is tuple and len(pid) == 4 and pid[0] == "module"):
        return None
    if not isinstance(pid[1], ForeignGlobal):
        raise UnreadableCheckpoint("the pickle names the source code of what is no class")
    return pid[1], bool(pid[3])


def _split(pid: object) -> tuple[tuple[Any, ...], object]:
    """An id as the zip has it, and the view that a stream's `("storage", class, key, location, numel, view)` adds."""
    if not (type(pid) is tuple and len(pid) == 6):
        raise UnreadableCheckpoint("the pickle names a storage in a way that torch does not")
    return pid[:5], pid[5]


def _check_view(root: StorageHandle, view: object) -> tuple[int, int]:
    """Offset and size of `(key, offset, size)`, in elements of the root."""
    if not (
        type(view) is tuple
        and len(view) == 3
        and all(type(number) is int for number in view[1:])
        and 0 <= view[1] <= view[1] + view[2] <= root.numel
    ):
        raise UnreadableCheckpoint("the pickle names a part of a storage that is not in it")
    return view[1], view[2]


def _as_today(fold: Fold) -> Fold:
    """Rebuild a tensor from arguments as only these streams have them."""

    def rebuild(*args: Any) -> Any:
        if len(args) >= 4 and type(args[0]) is StorageView:
            # On the whole storage, so that it goes on sharing its bytes.
            view, offset, size, stride, *rest = args
            check_layout(view.size, offset, size, stride)
            args = (view.root, view.offset + offset, size, stride, *rest)
        if args and args[-1] is None:
            # An early torch wrote None for no hooks (seen in files of other people).
            args = (*args[:-1], OrderedDict())
        return fold(*args)

    return rebuild
