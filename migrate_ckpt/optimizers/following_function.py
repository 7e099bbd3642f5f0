"""Follows a function by the renames that its file declares; without them it only sees that it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from migrate_ckpt.errors import OperationError, OptimizerNotFollowed
from migrate_ckpt.migration import CkptType
from migrate_ckpt.operations.moves import list_keys
from migrate_ckpt.operations.paths import Path, show_path
from migrate_ckpt.operations.renaming import Rename
from migrate_ckpt.operations.sections import is_tensor, own_keys
from migrate_ckpt.optimizers.arranging import put_in_order
from migrate_ckpt.optimizers.followed import FollowedOptimizer
from migrate_ckpt.optimizers.following import Declared, Following, Outcome, doubt_shared, model_at
from migrate_ckpt.optimizers.slots import tensor_identity
from migrate_ckpt.optimizers.states import is_optimizer_state, value_at, walk


class FollowingFunction(Following):
    """Compares the parameters before and after a function, and does what is declared to the optimizers."""

    def __init__(
        self, ckpt: CkptType, optimizers: Sequence[Declared], renames: Rename | None
    ) -> None:
        super().__init__(optimizers)
        self._before = [_Parameters(ckpt, follow.section) for _, follow in self._carried]
        self._followed: list[FollowedOptimizer] | None = None
        self._expected: list[list[str]] = []
        if renames is not None:
            self._prepare(ckpt, renames)

    def finish(self, ckpt: CkptType) -> Outcome:
        if all(before.are_the_same(ckpt) for before in self._before):
            return Outcome(None, self._drop(ckpt))
        paths = [
            show_path(optimizer.path)
            for optimizer, _ in self._carried
            if is_optimizer_state(value_at(ckpt, optimizer.path))
        ]
        if not paths:
            return Outcome(None, self._drop(ckpt))
        if self._followed is None:
            return Outcome(False, (_not_followed(paths), *self._drop(ckpt)))
        for number, followed in enumerate(self._followed):
            self._finish_one(ckpt, followed, number)
        return Outcome(True, self._drop(ckpt))

    def _prepare(self, ckpt: CkptType, renames: Rename) -> None:
        self._followed = [
            FollowedOptimizer(optimizer, model_at(ckpt, follow.section), follow)
            for optimizer, follow in self._carried
        ]
        doubt_shared(self._followed)
        for followed in self._followed:
            moves = renames.moves(followed.model)
            followed.move(moves)
            new = {move.sources[0]: move.targets[0] for move in moves}
            self._expected.append([new.get(key, key) for key in own_keys(followed.model)])

    def _finish_one(self, ckpt: CkptType, followed: FollowedOptimizer, number: int) -> None:
        optimizer, follow = self._carried[number]
        held = value_at(ckpt, optimizer.path)
        if held is None:
            return
        if held is not optimizer.held:
            raise OptimizerNotFollowed(
                f"The migration has put another value at {show_path(optimizer.path)}, and says in `renames` that the "
                'optimizer follows. One that it changes itself is left alone with `follow(states="keep")`.',
                keys=[show_path(optimizer.path)],
            )
        model = model_at(ckpt, follow.section)
        wrong = sorted(set(self._expected[number]) ^ set(own_keys(model)))
        if wrong:
            raise OptimizerNotFollowed(
                f"The migration does not do what its `renames` say: {list_keys(wrong)} is in one of both only.",
                keys=wrong,
            )
        # What is taken out and put in again under another name comes last, which is not meant.
        put_in_order(model, self._expected[number])
        followed.finish(model)


class _Parameters:
    """The parameters of a state dict as they are now: which tensor stands under which key."""

    def __init__(self, ckpt: CkptType, section: Path | None) -> None:
        self._section = section
        # An identity is only good while its owner lives.
        self._alive = self._items(ckpt)

    def are_the_same(self, ckpt: CkptType) -> bool:
        return _facts(self._alive) == _facts(self._items(ckpt))

    def _items(self, ckpt: CkptType) -> list[tuple[str, Any]]:
        try:
            model = model_at(ckpt, self._section)
        except OperationError:
            # Whichever it is, it has tensors.
            return [
                (show_path((*path, str(key))), value)
                for path, held in walk(ckpt)
                if not is_optimizer_state(held)
                for key, value in held.items()
                if is_tensor(value)
            ]
        return [(key, model[key]) for key in own_keys(model)]


def _not_followed(paths: Sequence[str]) -> str:
    return (
        f"optimizer not followed: {', '.join(paths)} may not fit the migrated parameters, as the migration is a "
        "function that does not say what it renames. Say it with `optimizer = follow(renames={...})`, list "
        '`operations`, or, where the function changes the optimizer itself, say `follow(states="keep")`.'
    )


def _facts(items: Sequence[tuple[str, Any]]) -> list[Any]:
    return [(key, tensor_identity(value)) for key, value in items]
