"""Which names a cell needs, and what goes along with them."""

from __future__ import annotations

import builtins
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from kalavai_nb import capture as capture_module
from kalavai_nb.blobs import Packed, load_bytes
from kalavai_nb.capture import Captured, capture, human_bytes, looks_secret, pack_by_value
from kalavai_nb.errors import SendError
from kalavai_nb.names import free_names

# what the source itself brings in: every rank has these too
OURS = {*dir(builtins), "get_ipython", "__annotations__"}


def names(source: str) -> set[str]:
    """The free names of a cell that are no builtins."""
    return set(free_names(source)) - OURS


def notebook(source: str, **more: Any) -> dict[str, Any]:
    """The namespace of a notebook in which this was run."""
    namespace: dict[str, Any] = {"__name__": "__main__", **more}
    exec(source, namespace)
    return namespace


def captured(source: str, namespace: dict[str, Any], **options: Any) -> dict[str, Captured]:
    return {item.name: item for item in capture(free_names(source), namespace, **options)}


def asked(*wanted: str, **namespace: Any) -> dict[str, Captured]:
    """What ``send=`` brings."""
    return {item.name: item for item in capture(dict.fromkeys(wanted, 0), namespace, explicit=True)}


def unpacked(packed: Packed) -> Any:
    content = bytearray(packed.blob.total_bytes)
    for offset, piece, _ in packed.pieces(1 << 20):
        content[offset : offset + len(piece)] = piece
    return load_bytes(content, packed.blob.sizes)


@pytest.fixture
def far() -> Iterator[dict[str, Any]]:
    """The namespace of the loading side: what is added to it goes again."""
    namespace = vars(sys.modules["__main__"])
    before = dict(namespace)
    yield namespace
    for name in set(namespace) - set(before):
        del namespace[name]
    namespace.update(before)


# free names: one statement


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", set()),
        ("1 + 1", set()),
        ("print(len([]))", set()),
        ("print(x)", {"x"}),
        ("x = y", {"y"}),
        ("x.y.z = w[i]", {"x", "w", "i"}),
        ("x += 1", {"x"}),
        ("del x", {"x"}),
        ("a, *b = c", {"c"}),
        ("f'{x:{width}} {y!r}'", {"x", "y", "width"}),
        ("(y := x) + y", {"x"}),
        ("x: T = 1", {"T"}),
        ("assert a, b", {"a", "b"}),
        ("raise E from cause", {"E", "cause"}),
        ("lambda a: a + b", {"b"}),
        ("lambda a=b: a", {"b"}),
        ("with a as b: b.c(d)", {"a", "d"}),
        ("match v:\n    case {'k': k}: print(k)", {"v"}),
        ("try: a()\nexcept E as e: print(e)\nfinally: b()", {"a", "E", "b"}),
    ],
)
def test_a_statement_needs_what_it_reads_before_it_binds_it(source: str, expected: set[str]) -> None:
    assert names(source) == expected


def test_an_import_binds_its_names() -> None:
    assert names("import numpy as np\nimport os.path\nfrom a import b as c\nnp.zeros(os.sep, c, n)") == {"n"}


def test_what_a_star_import_may_bring_is_taken_for_a_free_name() -> None:
    assert names("from math import *\nsin(x)") == {"sin", "x"}


def test_definition_before_use_is_no_free_name() -> None:
    assert names("x = 1\ny = x + z\nprint(y)") == {"z"}


def test_use_before_definition_is_a_free_name() -> None:
    assert names("print(x)\nx = 1\nprint(x)") == {"x"}


def test_a_name_that_is_read_while_it_is_bound_is_free() -> None:
    assert names("x = x + 1") == {"x"}
    assert names("for x in x: print(x)") == {"x"}


def test_a_name_is_found_in_the_line_of_its_first_use() -> None:
    found = free_names("a = 1\nprint(b)\nprint(\n    b,\n    c,\n)")
    assert (found["b"], found["c"]) == (2, 5)


def test_leading_empty_lines_count() -> None:
    assert free_names("\n\nprint(x)")["x"] == 3


# free names: functions and classes


def test_a_function_needs_its_globals_but_not_its_locals() -> None:
    assert names("def f(a, *b, **c):\n    d = a + g\n    return d, b, c, h(e=1)") == {"g", "h"}


def test_a_name_that_is_bound_after_the_function_will_do() -> None:
    assert names("def f(): return g() + k\ndef g(): return 1\nk = 2\nf()") == set()


def test_a_name_that_is_bound_in_a_branch_only_may_be_needed_by_a_function() -> None:
    assert names("def f(): return k\nif flag:\n    k = 1") == {"k", "flag"}


def test_a_name_that_a_closure_holds_is_not_free() -> None:
    assert names("def f(a):\n    def g(): return a + b\n    return g") == {"b"}


def test_decorators_defaults_and_annotations_are_read_at_once() -> None:
    source = "@deco(n)\ndef f(x=default, *, y: Type = other) -> Result: pass\ndeco = default = n = Type = Result = 1"
    assert names(source) == {"deco", "n", "default", "Type", "other", "Result"}


def test_a_function_may_change_a_global_of_the_notebook() -> None:
    assert names("def f():\n    global counter\n    counter += 1") == {"counter"}


def test_a_function_that_sets_a_global_before_it_reads_it_does_not_need_it() -> None:
    assert names("def f():\n    global counter\n    counter = 0\n    return counter") == set()


def test_a_global_statement_of_the_cell_itself_changes_nothing() -> None:
    assert names("global x\nx = 1\nprint(x)") == set()


def test_a_class_needs_its_bases_and_what_its_methods_use() -> None:
    source = "class A(B, metaclass=M):\n    y = k\n    z = y\n    def m(self): return h(self.y)"
    assert names(source) - {"__name__"} == {"B", "M", "k", "h"}


def test_the_body_of_a_class_is_run_at_once() -> None:
    assert "k" in names("class A:\n    a = k\nk = 2")


def test_a_method_may_use_what_is_bound_later() -> None:
    assert names("class A:\n    def m(self): return h()\ndef h(): return A") - {"__name__"} == set()


# free names: comprehensions


@pytest.mark.parametrize("source", ["[k * x for x in xs]", "{x: k for x in xs}", "{x for x in xs if x > k}"])
def test_a_comprehension_keeps_its_variable_to_itself(source: str) -> None:
    assert names(source) == {"k", "xs"}


def test_a_comprehension_reads_at_once() -> None:
    assert names("ys = [k * x for x in range(3)]\nk = 2") == {"k"}


def test_nested_comprehensions_need_what_the_inner_one_reads() -> None:
    assert names("[[f(x, y) for y in x] for x in xs]") == {"f", "xs"}


# free names: branches and loops


def test_a_name_bound_in_a_branch_may_still_be_free_after_it() -> None:
    assert names("if flag:\n    x = 1\nprint(x)") == {"flag", "x"}


def test_a_name_bound_in_one_branch_is_free_in_the_other() -> None:
    assert names("if flag:\n    x = 1\nelse:\n    print(x)") == {"flag", "x"}


def test_a_name_that_a_pass_of_a_loop_may_skip_is_free_in_the_rest_of_it() -> None:
    assert names("for i in range(3):\n    if i:\n        w = 1\n    print(w)") == {"w"}


def test_a_name_that_a_failed_try_has_not_bound_is_free_in_its_handler() -> None:
    assert names("try:\n    x = f()\nexcept Exception:\n    print(x)") == {"f", "x"}


def test_a_name_bound_before_a_branch_is_bound() -> None:
    assert names("x = 1\nif flag:\n    x = 2\nprint(x)") == {"flag"}


def test_a_loop_that_adds_up_needs_its_start() -> None:
    assert names("for x in range(3):\n    total += x") == {"total"}
    assert names("total = 0\nfor x in range(3):\n    total += x\nprint(total)") == set()


def test_the_variable_of_a_loop_is_bound_in_its_body() -> None:
    assert names("for i, (a, b) in pairs:\n    print(i, a, b)") == {"pairs"}
    assert names("while (line := read()):\n    print(line)") == {"read"}


def test_a_name_that_was_deleted_was_there() -> None:
    assert names("x = 1\ndel x") == set()


# free names: IPython's syntax


def test_await_works_at_the_top() -> None:
    assert names("await f()\nasync with a as b:\n    async for c in b.d(): print(c)") == {"f", "a"}
    assert names("[x async for x in xs]") == {"xs"}


@pytest.mark.parametrize("magic", ["%time", "%timeit", "%timeit -n 10 -r 3", "%prun", "r = %timeit -o", "%timeit -n10"])
def test_the_statement_of_a_magic_is_part_of_the_cell(magic: str) -> None:
    assert names(f"{magic} f(x)") - {"r"} == {"f", "x"}


def test_options_of_a_magic_may_have_words_for_values() -> None:
    assert {"f", "x"} <= names("%prun -s cumulative f(x)")


@pytest.mark.parametrize("magic", ["%%time", "%%timeit", "%%timeit -n 5", "%%capture out", "%%prun"])
def test_the_body_of_a_cell_magic_is_part_of_the_cell(magic: str) -> None:
    assert {"f", "x"} <= names(f"{magic}\ny = f(x)\nprint(y)")
    assert "y" not in names(f"{magic}\ny = f(x)\nprint(y)")


def test_the_setup_of_a_timeit_cell_is_part_of_it() -> None:
    assert {"make", "f"} <= names("%%timeit data = make()\nf(1)")


@pytest.mark.parametrize("line", ["!ls {d}", "%matplotlib inline", "%time g()", "files = !ls"])
def test_the_body_of_a_cell_magic_may_hold_ipythons_syntax(line: str) -> None:
    assert {"f", "x"} <= names(f"%%time\n{line}\nf(x)")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("!echo {x}", {"x"}),
        ("!echo $x", {"x"}),
        ("!echo {x.shape[0]} {f(y)}", {"x", "f", "y"}),
        ("files = !ls {folder}", {"folder"}),
        ("!!ls $folder", {"folder"}),
        ("%cd {folder}", {"folder"}),
        ("%%bash\necho {x}", {"x"}),
        ("!awk '{print $1}' file", set()),
        ("!nvidia-smi", set()),
    ],
)
def test_shell_commands_need_what_is_put_into_them(line: str, expected: set[str]) -> None:
    assert names(line) == expected


@pytest.mark.parametrize("text", ["{x!r}", "{x[1:2]}", "{x['a']}"])
def test_what_is_put_into_a_shell_command_may_be_converted_or_a_part(text: str) -> None:
    assert names(f"!echo {text}") == {"x"}


def test_questions_are_no_names() -> None:
    assert names("print?\n?print\nx") == {"x"}


def test_other_magics_keep_their_text() -> None:
    assert names("%matplotlib inline\n%load_ext some.extension") == set()


# free names: what cannot run


def test_a_syntax_error_has_the_cells_own_line() -> None:
    with pytest.raises(SyntaxError) as error:
        free_names("a = 1\n\nb = = 2")
    assert (error.value.filename, error.value.lineno, error.value.text) == ("<cell>", 3, "b = = 2\n")


@pytest.mark.parametrize("source", ["return 1", "break", "yield x", "def f(a, a): pass"])
def test_a_cell_that_does_not_compile_is_a_syntax_error(source: str) -> None:
    with pytest.raises(SyntaxError):
        free_names(source)


# what goes along


def test_names_that_the_notebook_does_not_have_are_left_to_the_cell() -> None:
    assert captured("print(rank, x)", {"x": 1}).keys() == {"x"}


def test_a_name_comes_with_its_content_and_line() -> None:
    item = captured("1\nprint(x)", {"x": [1, 2]})["x"]
    assert (item.name, item.line, item.is_module) == ("x", 2, False)
    assert unpacked(item.packed) == [1, 2]


def test_modules_are_marked() -> None:
    item = captured("np.zeros(3)", {"np": np})["np"]
    assert item.is_module
    assert unpacked(item.packed) is np


def test_ipythons_own_names_stay() -> None:
    namespace = {"In": [""], "Out": {}, "__builtins__": builtins, "x": 1}
    assert captured("In, Out, __builtins__, x", namespace).keys() == {"x"}


def test_what_a_function_uses_is_sent_by_itself() -> None:
    namespace = notebook("factor = 3\ndef twice(x): return 2 * x\ndef f(x): return twice(x) * factor\nunused = 1")
    found = captured("1\nf(1)", namespace)
    assert list(found) == ["f", "factor", "twice"]
    assert found["f"].packed.uses == {"factor", "twice"}
    assert (found["f"].line, found["factor"].line) == (2, 2)


def test_a_function_is_the_same_content_whatever_its_globals_are() -> None:
    namespace = notebook("factor = 3\ndef f(x): return x * factor")
    before = captured("f", namespace)
    namespace["factor"] = 4
    after = captured("f", namespace)
    assert before["f"].packed.blob == after["f"].packed.blob
    assert before["factor"].packed.blob != after["factor"].packed.blob


def test_functions_that_call_each_other_are_sent_once() -> None:
    namespace = notebook("def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n > 0 and even(n - 1)")
    found = list(capture(free_names("even(2)"), namespace))
    assert [item.name for item in found] == ["even", "odd"]


def test_a_function_reads_the_globals_of_where_it_is_loaded(far: dict[str, Any]) -> None:
    namespace = notebook("factor = 3\ndef f(x): return x * factor + offset()\ndef offset(): return 1")
    far["factor"], far["offset"] = 100, lambda: 5
    f = unpacked(captured("f", namespace)["f"].packed)
    assert f.__globals__ is far
    assert f(2) == 205


def test_a_function_that_is_loaded_does_not_overwrite_what_is_there(far: dict[str, Any]) -> None:
    namespace = notebook("factor = 3\ndef f(x): return x * factor")
    far["factor"] = 100
    before = {name: value for name, value in far.items() if name != "__builtins__"}
    unpacked(captured("f", namespace)["f"].packed)
    assert {name: value for name, value in far.items() if name != "__builtins__"} == before


def test_a_function_keeps_defaults_docstring_and_closure(far: dict[str, Any]) -> None:
    namespace = notebook(
        "def make(a):\n    def g(b, *, c=3):\n        'Adds.'\n        return a + b + c + k\n    return g\n"
        "g = make(1)\nk = 0"
    )
    item = captured("g", namespace)["g"]
    far["k"] = 10
    g = unpacked(item.packed)
    assert item.packed.uses == {"k"}
    assert (g(2), g.__doc__) == (16, "Adds.")


def test_a_nested_function_uses_names_too() -> None:
    namespace = notebook("k = 1\ndef f():\n    def g(): return [k for _ in range(2)]\n    return g()")
    assert captured("f", namespace)["f"].packed.uses == {"k"}


def test_methods_of_a_class_of_the_notebook_use_names_too(far: dict[str, Any]) -> None:
    namespace = notebook("k = 1\nclass A:\n    def m(self): return k + h()\ndef h(): return 0")
    found = captured("A()", namespace)
    assert found.keys() == {"A", "k", "h"}
    far["k"], far["h"] = 10, lambda: 20
    assert unpacked(found["A"].packed)().m() == 30


def test_an_object_brings_its_class(far: dict[str, Any]) -> None:
    namespace = notebook("k = 1\nclass A:\n    def m(self): return k\na = A()")
    found = captured("a.m()", namespace)
    assert found.keys() == {"a", "k"}
    far["k"] = 7
    assert unpacked(found["a"].packed).m() == 7


def test_functions_in_containers_use_names_too() -> None:
    namespace = notebook("k = 1\nfs = [lambda x: x + k]")
    assert captured("fs[0](1)", namespace).keys() == {"fs", "k"}


def test_extra_values_stand_for_names_of_the_notebook() -> None:
    found = {item.name: item for item in capture({"x": 0, "y": 0}, {"x": 1}, extra={"x": 2, "y": 3})}
    assert {name: unpacked(item.packed) for name, item in found.items()} == {"x": 2, "y": 3}


def test_a_module_beside_the_notebook_goes_along_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_the_notebook.py").write_text("K = 4\ndef f(x):\n    return x * K\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import beside_the_notebook

    item = captured("f", {"f": beside_the_notebook.f})["f"]
    monkeypatch.delitem(sys.modules, "beside_the_notebook")
    (tmp_path / "beside_the_notebook.py").unlink()
    assert unpacked(item.packed)(2) == 8
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_nothing_is_registered_where_sending_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_it_too.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("beside_it_too")
    with pytest.raises(SendError):
        captured("lock", {"lock": threading.Lock()})
    monkeypatch.delitem(sys.modules, "beside_it_too")
    assert cloudpickle.list_registry_pickle_by_value() == set()


# what cannot go along


def test_what_cannot_be_pickled_is_named_with_its_line_and_the_way_out() -> None:
    with pytest.raises(SendError) as error:
        captured("1\nwith lock: pass", {"lock": threading.Lock()})
    assert str(error.value) == (
        "`lock` (used in line 2 of the cell) cannot be sent to the ranks: cannot pickle '_thread.lock' object. "
        "Make it inside the cell, or leave it out with send=none."
    )


def test_what_a_function_uses_in_turn_is_named_with_the_line_of_the_function() -> None:
    namespace = notebook("def f():\n    with lock: pass", lock=threading.Lock())
    with pytest.raises(SendError, match=r"^`lock` \(used in line 2 of the cell\) cannot be sent"):
        captured("1\nf()", namespace)


@pytest.mark.parametrize("error", [ValueError("No."), ValueError()])
def test_whatever_the_pickling_raises_is_a_send_error(error: Exception) -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise error

    with pytest.raises(SendError, match=r"cannot be sent to the ranks: (no|valueError|ValueError)\. Make it"):
        captured("x", {"x": Stubborn()})


def test_a_credential_stays_at_home() -> None:
    with pytest.raises(SendError) as error:
        captured("login(api_key)", {"api_key": "123"})
    assert str(error.value) == (
        "`api_key` (used in line 1 of the cell) looks like a credential, and every member of the pool could read it; "
        "it was not sent. Say send=api_key,… if you mean it."
    )


def test_a_credential_that_a_function_uses_stays_at_home() -> None:
    namespace = notebook("HF_TOKEN = 'x'\ndef f(): return HF_TOKEN")
    with pytest.raises(SendError, match=r"`HF_TOKEN` \(used in line 1 of the cell\) looks like a credential"):
        captured("f()", namespace)
    with pytest.raises(SendError, match="`HF_TOKEN` looks like a credential"):
        list(capture({"f": 0}, namespace, explicit=True))


def test_a_credential_goes_along_where_it_is_asked_for() -> None:
    assert asked("api_key", api_key="123").keys() == {"api_key"}


@pytest.mark.parametrize("name", ["token", "hf_token", "API_KEY", "apikey", "my_password", "passwd", "credentials"])
def test_names_of_credentials(name: str) -> None:
    assert looks_secret(name, "text")
    assert looks_secret(name, b"bytes")


@pytest.mark.parametrize("name", ["tokenizer", "tokens", "key", "secretary", "pass_count"])
def test_names_of_no_credentials(name: str) -> None:
    assert not looks_secret(name, "text")


def test_a_number_of_tokens_is_no_credential() -> None:
    assert not looks_secret("token", 7)


def test_a_large_value_does_not_go_along_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "MAX_SEND_BYTES", 10_000)
    with pytest.raises(SendError) as error:
        captured("big.sum()", {"big": np.zeros(2500)})
    assert "`big` (used in line 1 of the cell) is 20.2 kB, more than 10.0 kB that go along unasked" in str(error.value)
    assert "Say send=big,…" in str(error.value)
    assert asked("big", big=np.zeros(2500)).keys() == {"big"}


def test_a_name_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(SendError, match="send=y was asked for, but the notebook has no name 'y'"):
        asked("x", "y", x=1)


def test_a_missing_name_is_told_before_anything_is_packed() -> None:
    with pytest.raises(SendError, match="no name 'y'"):
        next(capture({"x": 0, "y": 0}, {"x": 1}, explicit=True))


# arguments


def test_an_argument_carries_what_its_functions_use() -> None:
    namespace = notebook("k = 3\ndef f(x): return x * k")
    f = unpacked(pack_by_value(namespace["f"]))
    assert f(2) == 6


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1200, "1.2 kB"), (123_456, "123 kB"), (1_500_000, "1.5 MB"), (2.5e9, "2.5 GB")],
)
def test_sizes_are_told_as_people_read_them(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(("count", "text"), [(999_600, "1.0 MB"), (999_999_999, "1.0 GB")])
def test_sizes_are_rounded_into_the_next_unit(count: float, text: str) -> None:
    assert human_bytes(count) == text
