"""Writes what was read with the pickler in Python, by ways as plain as can be: to compare the true writer with."""

from __future__ import annotations

import copyreg
import io
import pickle
from typing import Any

from migrate_ckpt.foreign import ForeignGlobal, ForeignObject, recipe

_Pickler: Any = pickle._Pickler  # type: ignore[attr-defined]


class _Oracle(_Pickler):  # type: ignore[misc]
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if type(obj) is ForeignGlobal and id(obj) not in self.memo:
            self._save_name(obj)
        else:
            super().save(obj, save_persistent_id)

    def reducer_override(self, obj: Any) -> Any:
        return _reduced(obj) if type.__instancecheck__(ForeignObject, obj) else NotImplemented

    def _save_name(self, found: ForeignGlobal) -> None:
        via = found.__dict__.get("__via__")
        if via:
            self.save_reduce(*via, obj=found)
        elif self.proto >= 4:
            self.save(found.__module__)
            self.save(found.__qualname__)
            self.write(pickle.STACK_GLOBAL)
            self.memoize(found)
        else:
            self.write(pickle.GLOBAL + f"{found.__module__}\n{found.__qualname__}\n".encode())
            self.memoize(found)


def _reduced(obj: ForeignObject) -> tuple[Any, ...]:
    made = recipe(obj)
    # What was read is not changed here, so that a state that was kept is still the true one.
    state: Any = made.state
    if state is not None:
        pass
    elif made.state_kind == "dict":
        state = vars(obj)
    elif made.state_kind == "slots":
        names = made.plain_names or ()
        plain = {key: value for key, value in vars(obj).items() if key in names}
        slots = {key: value for key, value in vars(obj).items() if key not in names}
        state = (None if made.plain_names is None else plain, slots)
    function, args = made.function, made.args
    if made.kwargs:
        function, args = copyreg.__newobj_ex__, (function, args, made.kwargs)  # type: ignore[attr-defined]
    elif made.is_new:
        function, args = copyreg.__newobj__, (function, *args)  # type: ignore[attr-defined]
    items = iter(made.items) if type(made.items) is list else None
    pairs = iter(made.items.items()) if type(made.items) is dict else None
    return function, args, state, items, pairs


def write(value: Any, protocol: int) -> bytes:
    buffer = io.BytesIO()
    _Oracle(buffer, protocol).dump(value)
    return buffer.getvalue()
