"""What a function carries, what of it cannot go, and whether it is still the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kalavai_nb.blobs import pack
from kalavai_nb.closure.carried import carried, large
from kalavai_nb.closure.culprit import why_not
from kalavai_nb.closure.fingerprint import changed, config_key, fingerprint
from kalavai_nb.closure.stale import stale_modules
from notebook import Notebook

pd = pytest.importorskip("pandas")
torch = pytest.importorskip("torch")

MODULE = """
import math
BASE = 2
EXTRA = {"a": 1}
def scale(x):
    return math.sqrt(x) * BASE
class Layer:
    width = 3
    def call(self, x):
        return scale(x)
"""


def ran(source: str, **more: Any) -> dict[str, Any]:
    """The namespace of a notebook in which this was run as one cell."""
    namespace: dict[str, Any] = {"__name__": "__main__", **more}
    exec(compile(source, f"/tmp/ipykernel_{os.getpid()}/{len(source)}.py", "exec"), namespace)
    return namespace


def lines(fn: Callable[..., Any]) -> dict[str, int]:
    return {name: item.line for name, item in carried(fn).items()}


def prints(source: str, name: str = "train", **more: Any) -> dict[str, str]:
    return fingerprint(ran(source, **more)[name])


def reason(value: object, what: str = "") -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 whatever pickle has against it
        pack(value)
    return why_not(value, caught.value, what)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Write modules beside the notebook and import them, anew where they were imported before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: set[str] = set()

    def write(name: str = "beside_it", source: str = MODULE, *, load: bool = True) -> Any:
        (tmp_path / f"{name}.py").write_text(source)
        names.add(name)
        if load:
            for known in names:
                sys.modules.pop(known, None)
            return __import__(name)
        return None

    # compiled files tell the versions of a file apart by size and second
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    for name in names:
        sys.modules.pop(name, None)


# carried


def test_globals_cells_and_defaults_with_their_lines() -> None:
    source = """\
import numpy as np
rate = 0.1
def outer(data):
    inner = {"a": 1}
    def train(config, steps=3, *, warm=None):
        # nothing here
        total = np.sum(data)
        return [rate * inner["a"] for _ in range(steps)]
    return train
"""
    train = ran(source)["outer"]([1, 2])
    assert lines(train) == {"data": 7, "inner": 8, "rate": 8, "steps": 5, "warm": 5}
    item = carried(train)["data"]
    assert (item.name, item.value, item.user) == ("data", [1, 2], "train")


def test_what_every_worker_has_is_not_carried() -> None:
    source = """
import json, math
from collections import Counter
from math import sqrt
def train(config):
    return json, math, Counter, sqrt, len, __name__, np, loads
"""
    assert carried(ran(source, np=np, loads=json.loads)["train"]) == {}


def test_notebook_functions_and_classes_bring_their_own() -> None:
    source = """
limit = 3
table = {"k": 1}
shift = 1.5
class Base:
    def go(self):
        return shift
class Net(Base):
    @property
    def top(self):
        return limit
    @staticmethod
    def look(k):
        return table[k]
def helper(x):
    return Net()
def train(config):
    return helper(config)
"""
    found = carried(ran(source)["train"])
    assert list(found) == ["helper", "Net", "limit", "table", "shift"]
    assert {name: item.user for name, item in found.items()} == {
        "helper": "train",
        "Net": "helper",
        "limit": "Net.top",
        "table": "Net.look",
        "shift": "Base.go",
    }


def test_names_used_by_functions_inside_data() -> None:
    source = """
a, b, c = 1, 2, 3
class Step:
    def __init__(self, f):
        self.f = f
    def __call__(self):
        return b
steps = [lambda: a, Step(lambda: c)]
def train(config):
    return steps
"""
    assert set(carried(ran(source)["train"])) == {"steps", "a", "b", "c"}


def test_partials_methods_callable_objects_and_classes() -> None:
    source = """
import functools
limit = 3
class Trainer:
    def __init__(self, data):
        self.data = data
    def fit(self, config):
        return limit
    def __call__(self, config):
        return limit
def train(data, config, size=2):
    return limit
trainer = Trainer("rows")
bound = functools.partial(train, "rows", size=9)
"""
    cell = ran(source)
    assert {name: item.value for name, item in carried(cell["bound"]).items()} == {
        "data": "rows",
        "size": 9,
        "limit": 3,
        "train.size": 2,
    }
    for fn in (cell["trainer"], cell["trainer"].fit):
        assert {name: item.value for name, item in carried(fn).items()} == {"self": cell["trainer"], "limit": 3}
    assert set(carried(cell["Trainer"])) == {"limit"}


def test_decorated_functions_are_one_function() -> None:
    source = """
import functools
import torch
calls = []
rate = 2
def logged(level):
    def decorate(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            calls.append(level)
            return fn(*args)
        return wrapper
    return decorate
@logged("info")
def train(config):
    return rate * (train(config - 1) if config else 1)
@torch.no_grad()
def evaluate(config):
    return rate
@functools.lru_cache
def cached(config):
    return rate
def plain(fn):
    return lambda config: fn(config)
bare = plain(cached)
"""
    cell = ran(source)
    assert set(carried(cell["train"])) == {"level", "calls", "rate"}
    assert carried(cell["evaluate"])["rate"].line == 19
    assert set(carried(cell["cached"])) == {"rate"}
    assert set(carried(cell["bare"])) == {"fn", "rate"}


def test_recursion_and_cycles_end() -> None:
    source = """
loop = []
loop.append(loop)
class Node:
    def __init__(self): self.me = self
    def other(self): return Node, train
node = Node()
def odd(n): return n and even(n - 1)
def even(n): return node if n else odd(n)
def train(config): return train, odd(config), loop, node
train.itself = train
train.__wrapped__ = train
"""
    train = ran(source)["train"]
    assert set(carried(train)) == {"odd", "loop", "node", "even", "Node"}
    assert set(fingerprint(train)) == {"code", "odd", "loop", "node", "even", "Node"}
    assert large(train) == []


def test_modules_beside_the_notebook(beside: Callable[..., Any]) -> None:
    module = beside()
    cell = ran("def train(config):\n    return module.scale(config)", module=module)
    assert set(carried(cell["train"])) == {"module"}
    cell = ran("def train(config):\n    return scale(config), Layer()", scale=module.scale, Layer=module.Layer)
    assert lines(cell["train"]) == {"Layer": 2, "scale": 2, "beside_it.BASE": 6, "beside_it.scale": 10}
    assert set(carried(module.scale)) == {"BASE"}, "in its own module it needs no prefix"


def test_unlike_values_under_one_name_are_told_apart() -> None:
    source = """
def maker(fn, x):
    def made(config):
        return fn(config), x
    return made
inner = maker(None, 1)
train = maker(inner, 2)
"""
    found = {name: item.value for name, item in carried(ran(source)["train"]).items()}
    assert found["x"] == 2
    assert found["made.x"] == 1


def test_an_unfilled_cell_and_a_missing_name_are_nothing() -> None:
    source = """
def outer():
    def train(config):
        return later, missing
    yield train
    later = 1
train = next(outer())
"""
    assert carried(ran(source)["train"]) == {}
    assert set(prints(source)) == {"code"}


def test_functions_of_libraries_carry_what_they_are_bound_to() -> None:
    data = list(range(10))
    assert set(carried(partial(json.dumps, default=data))) >= {"default"}
    assert carried(np.sum) == {}
    assert carried(len) == {}


def test_many_values_are_walked_in_no_time() -> None:
    started = time.monotonic()
    carried(ran("def train(config): return data", data=[[i] for i in range(200_000)])["train"])
    assert time.monotonic() - started < 2


# large


def test_large_values_biggest_first() -> None:
    source = """
import numpy as np, torch, pandas as pd
frame = pd.DataFrame({"x": np.zeros(200_000), "text": ["some text" * 5] * 200_000})
array = np.zeros((3000, 1000))
raw = bytes(1_500_000)
view = torch.zeros(4_000_000, dtype=torch.uint8)[:10]
lists = [list(range(1_000_000))]
small = np.zeros(10)
class Net:
    weights = np.zeros(250_000)
    def go(self): return array
net = Net()
def helper(): return array, net
def train(config):
    return helper(), frame, array, raw, view, lists, small, array2
array2 = array
"""
    sizes = dict(large(ran(source)["train"]))
    assert next(iter(sizes)) == "array"
    assert {*sizes} == {"array", "frame", "raw", "view", "lists", "net"}, "each once, under its first name"
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert sizes["array"] == 24_000_000
    assert sizes["raw"] == 1_500_000
    assert sizes["view"] == 4_000_000, "a view takes all of its tensor along"
    assert sizes["net"] < 3_000_000, "what its methods use is counted by itself"
    assert sizes["frame"] > 3_000_000
    assert set(dict(large(ran(source)["train"], from_bytes=10_000_000))) == {"array", *{"frame"} & {*sizes}}


def test_what_cannot_be_pickled_has_no_size() -> None:
    assert large(ran("def train(config): return lock", lock=threading.Lock())["train"], from_bytes=1) == []


# why not


def test_the_name_and_line_are_named() -> None:
    source = """
import threading
lock = threading.Lock()
def train(config):
    with lock:
        return config
"""
    assert reason(ran(source)["train"]) == (
        "`lock` (line 5 of train) cannot be pickled: cannot pickle '_thread.lock' object. "
        "Make it inside train, or leave it out."
    )


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ({"a": 1, "lock": "LOCK"}, "x['lock']"),
        ([1, 2, ("a", "LOCK")], "x[2][1]"),
        ([0] * 100_000 + ["LOCK"], "x[100000]"),
        (SimpleNamespace(a=1, lock="LOCK"), "x.lock"),
        ({"deep": SimpleNamespace(inner={"k": ["LOCK"]})}, "x['deep'].inner['k'][0]"),
        (partial(print, end="LOCK"), "x.keywords['end']"),
    ],
)
def test_the_part_of_a_value_is_named(given: Any, label: str) -> None:
    def fill(value: Any) -> Any:
        if isinstance(value, SimpleNamespace):
            return SimpleNamespace(**fill(vars(value)))
        if isinstance(value, partial):
            return partial(value.func, **fill(value.keywords))
        if isinstance(value, dict):
            return {key: fill(child) for key, child in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(fill, value))
        return threading.Lock() if value == "LOCK" else value

    value = fill(given)
    train = ran("def train(config):\n    return x", x=value)["train"]
    assert reason(train).startswith(f"`{label}` (line 2 of train) cannot be pickled: cannot pickle '_thread.lock' obj")
    expected = f"`{label.replace('x', 'config', 1)}` cannot be pickled: cannot pickle '_thread.lock' object."
    assert reason(value, "config").startswith(expected)


def test_a_torch_module_is_written_as_people_write_it() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Linear(2, 2))

    model = Net()
    model.body[0].lock = threading.Lock()
    cell = ran("def train(config):\n    return model(config)", model=model)
    assert "`model.body.0.lock` (line 2 of train)" in reason(cell["train"])


def test_a_value_that_drops_its_lock_itself_is_not_blamed() -> None:
    source = """
class Safe:
    def __init__(self, more): self.lock, self.more = lock, more
    def __getstate__(self): return {"more": self.more}
fine, bad = Safe(1), Safe([lock])
def train(config):
    return fine, bad
"""
    text = reason(ran(source, lock=threading.Lock())["train"])
    assert text.startswith("`bad.more[0]` (line 7 of train) cannot be pickled")


def test_the_innermost_user_is_blamed_and_not_those_that_use_it() -> None:
    source = """
class Net:
    def go(self): return helper()
net = Net()
hooks = [lambda: helper()]
def helper():
    return lock
def train(config):
    return net, hooks, helper()
"""
    text = reason(ran(source, lock=threading.Lock())["train"])
    assert text.startswith("`lock` (line 7 of helper) cannot be pickled")
    assert text.endswith("Make it inside helper, or leave it out.")


def test_several_are_listed_but_one_under_two_names_once() -> None:
    lock, other = threading.Lock(), (i for i in [])
    source = "def train(config):\n    return lock, alias,\\\n    other"
    text = reason(ran(source, lock=lock, alias={"same": lock}, other=other)["train"])
    assert text.startswith("`alias['same']` (line 2 of train) and `other` (line 3 of train) cannot be pickled: ")
    assert "cannot pickle '_thread.lock' object; cannot pickle 'generator' object" in text
    assert text.endswith("Make them inside train, or leave them out.")
    many = {f"lock{i}": threading.Lock() for i in range(9)}
    text = reason(ran(f"def train(config): return [{', '.join(many)}]", **many)["train"])
    assert "and 6 more cannot be pickled: cannot pickle '_thread.lock' object." in text


def test_attributes_of_objects_classes_functions_and_modules(beside: Callable[..., Any]) -> None:
    source = """
class Trainer:
    def __init__(self): self.lock = lock
    def fit(self, config): return config
    def __call__(self, config): return config
class Holder:
    shared = lock
def train(config):
    return Holder
def tagged(config):
    return config
tagged.lock = lock
"""
    cell = ran(source, lock=threading.Lock())
    assert reason(cell["Trainer"]().fit).startswith("`self.lock` (used by Trainer.fit) cannot be pickled")
    assert reason(partial(cell["Trainer"]())).startswith("`self.lock` (used by Trainer) cannot be pickled")
    assert reason(cell["train"]).startswith("`Holder.shared` (line 9 of train) cannot be pickled")
    assert reason(cell["tagged"]).startswith("`tagged.lock` cannot be pickled")
    module = beside("locked_it", "import threading\nlock = threading.Lock()\n")
    cell = ran("def train(config):\n    return module.lock", module=module)
    text = why_not(cell["train"], TypeError("cannot pickle"))
    assert text.startswith("`module.lock` (line 2 of train) cannot be pickled: cannot pickle '_thread.lock' object.")


def test_a_function_in_a_config_names_what_it_uses() -> None:
    cell = ran("def act(x):\n    return lock\nconfig = {'act': act}", lock=threading.Lock())
    assert reason(cell["config"], "config") == (
        "`lock` (line 2 of act) cannot be pickled: cannot pickle '_thread.lock' object. "
        "Make it inside act, or leave it out."
    )


def test_where_nothing_is_to_blame_the_plain_reason_stands() -> None:
    train = ran("def train(config): return config")["train"]
    assert why_not(train, TypeError("Odd things happen.")) == "train cannot be pickled: odd things happen."
    lock = threading.Lock()
    assert reason(lock, "config").startswith("`config` cannot be pickled: cannot pickle '_thread.lock' object.")
    assert why_not(3, TypeError("No."), "config") == "config cannot be pickled: no."


# fingerprints: what keeps them equal

SESSION = """
import collections, dataclasses, enum, functools, logging, pathlib, re, threading
import numpy as np, pandas as pd, torch
from torch import nn

words = {"a", "b", "c", "dd", "eee"}
by_word = {frozenset({"x", "y"}): {"p", "q", "r"}}
weights = torch.arange(6.0).reshape(2, 3).T
kinds = [torch.zeros(0), torch.ones(2, dtype=torch.complex64), torch.ones(3, dtype=torch.bfloat16), torch.tensor(True)]
arrays = [np.array([1, "a", None], dtype=object), np.array(["a", "bb"]), np.array(["2020"], dtype="M8[s]"), np.eye(3).T]
frame = pd.DataFrame({"t": pd.to_datetime(["2020-01-01", "2021-01-01"]), "s": ["a", "b"], "c": pd.Categorical([1, 2])})
odds = [logging.getLogger("x"), pathlib.Path("a/b"), re.compile("a+"), collections.Counter("hello"), object()]
opaque = [threading.Lock(), (i for i in range(3))]
cycle = [1]
cycle.append(cycle)
numbers = list(range(5000))
rng = np.random.default_rng(3)

class Color(enum.Enum):
    RED = 1
    BLUE = "b"

@dataclasses.dataclass
class Options:
    lr: float = 0.1
    layers: list = dataclasses.field(default_factory=list)

    @functools.cached_property
    def half(self):
        return self.lr / 2

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(2, 2)

    @property
    def size(self):
        return words

    @staticmethod
    def name():
        return {"m", "n"}

    def forward(self, x):
        return helper(x)

net, options = Net(), Options()

@functools.lru_cache
def cached(x):
    return x * 3

def helper(x, n=2):
    with torch.no_grad():
        return [y for y in x if y in {"p", "q", "r"}] and cached(x) and rng

def wrapped(fn):
    @functools.wraps(fn)
    def inner(*args, **more):
        return fn(*args, **more)
    return inner

table = {"f": lambda x: x + 1, Color.RED: np.float32(3), "join": "abc".join, "method": options.__eq__}

@torch.no_grad()
@wrapped
def train(config, options=options, *, scale=2.0):
    def loop(i):
        return loop(i - 1) if i else (net, Color.RED, table, words, by_word, weights, kinds, arrays, frame)
    return loop, odds, opaque, cycle, numbers, np.zeros, nn.Linear
"""
RESTARTED = """
import json, sys
from kalavai_nb.closure.fingerprint import config_key, fingerprint
source = sys.stdin.read()
exec(compile("\\n" * int(sys.argv[1]) + source, f"/tmp/ipykernel_{sys.argv[1]}/1.py", "exec"))
config = [{"a": {"p", "q", "r"}, "n": np.float32(0.5), "o": options, "act": table["f"], "k": Color.RED}, weights, frame]
print(json.dumps([fingerprint(train), config_key(config)]))
"""


def restarted(number: int) -> Any:
    """The fingerprint and a config's key in another process, with another hash seed, from other lines of a cell."""
    env = {**os.environ, "PYTHONHASHSEED": str(number)}
    root = Path(__file__).parent.parent
    command = [sys.executable, "-W", "ignore", "-c", RESTARTED, str(number)]
    return json.loads(
        subprocess.run(command, input=SESSION, env=env, cwd=root, check=True, capture_output=True, text=True).stdout
    )


def test_they_are_the_same_after_a_restart() -> None:
    (first, key), (second, second_key) = restarted(1), restarted(2)
    assert changed(first, second) == []
    assert key == second_key
    expected = {"code", "net", "Color", "table", "words", "by_word", "weights", "kinds", "arrays", "frame", "odds"}
    expected |= {"opaque", "cycle", "numbers", "options", "scale", "np", "nn", "torch", "helper", "cached", "rng"}
    assert expected <= set(first)
    assert all(len(digest) == 32 for digest in first.values())


SAME = [
    "rate = 2\n\n\ndef train(config):\n    # why\n\n    return rate * config  # so\n",
    "rate=2\ndef train(config): return (rate\n    * config)\n",
    'rate = 2\ndef train(config):\n    return rate * config\ndef other(): "not used"\n',
    "rate = 2\ndef train(config: int) -> int:\n    return rate * config\n",
    'rate = 2\ndef train(config):\n    "Says what it does."\n    return rate * config\n',
]


@pytest.mark.parametrize("source", SAME)
def test_comments_lines_docstrings_and_annotations_do_not_count(source: str) -> None:
    assert changed(prints("rate = 2\ndef train(config):\n    return rate * config\n"), prints(source)) == []


def test_a_local_function_of_a_cell_that_is_run_again() -> None:
    source = (
        "def make(n):\n    def train(config):\n        return [n, lambda: config]\n    return train\ntrain = make(3)"
    )
    assert prints(source) == prints("# more\n\n" + source)
    assert changed(prints(source), prints(source.replace("(3)", "(4)"))) == ["n"]


def test_in_a_real_cell_that_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)  # IPython warns of one that is not its own
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    cell = "class Net:\n    def go(self): return scale\nscale = {'b', 'a'}\ndef train(config):\n    return Net().go()\n"
    seen = []
    for source in (cell, "# again\n" + cell):
        shell.run_cell(source, store_history=True)
        seen.append(fingerprint(shell.user_ns["train"]))
    assert seen[0] == seen[1]
    assert set(seen[0]) == {"code", "Net", "scale"}


def test_in_two_kernels_and_in_another_cell_of_the_second(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def double(x):\n    return 2 * x\n")
    cell = "import mine\nwords = {'a', 'b', 'c'}\ndef train(config):\n    return mine.double(config), words\n"
    show = "from kalavai_nb.closure.fingerprint import fingerprint\nfingerprint(train)"
    seen = []
    for before in (["x = 1"], ["x = 1", "# another cell\n\n" + cell]):
        with Notebook(cwd=str(tmp_path)) as kernel:
            for source in (*before, cell):
                kernel.ok(source)
            seen.append(kernel.ok(show).displays[0]["text/plain"])
    assert seen[0] == seen[1]
    assert {"'code'", "'mine'", "'words'"} == set(re.findall(r"'\w+'(?=:)", seen[0]))


def test_runtime_state_of_functions_does_not_count() -> None:
    cell = ran("import functools\n@functools.lru_cache\ndef f(x): return x\ndef train(config): return f(config)")
    before = fingerprint(cell["train"])
    cell["train"](1)
    cell["train"].calls = 1
    assert fingerprint(cell["train"]) == before


# fingerprints: what changes them

BASE = """
import functools
import numpy as np
rate = 2
data = {"x": [1, 2], "words": {"a", "b"}}
array = np.arange(6.0)
class Base:
    def step(self): return 1
class Net(Base):
    width = 3
    def go(self): return helper(self.width)
    @staticmethod
    def look(): return 5
    @functools.cached_property
    def slow(self): return 6
net = Net()
net.depth = 1
hooks = [lambda x: x + rate]
def helper(x):
    return x + rate
def twice(fn):
    @functools.wraps(fn)
    def wrapper(config): return fn(config), 2
    return wrapper
@twice
def train(config, steps=10, *, warm=0.5):
    def inner(i): return i + 7
    try:
        inner(1)
    except KeyError:
        pass
    return Net().go(), data, array, net, hooks, 1.5, np.sum
"""


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("1.5, np", "1.25, np", ["code"]),
        ("1.5, np", "1.5 + 1, np", ["code"]),
        ("i + 7", "i + 8", ["code"]),
        ("i + 7", "i - 7", ["code"]),
        ("KeyError", "ValueError", ["code"]),
        ("fn(config), 2", "fn(config), 3", ["code"]),
        ("np.sum", "np.mean", ["code"]),
        ("steps=10", "steps=11", ["steps"]),
        ("warm=0.5", "warm=0.25", ["warm"]),
        ("warm=0.5", "cold=0.5", ["code", "cold", "warm"]),
        ("x + rate\ndef twice", "x - rate\ndef twice", ["helper"]),
        ("rate = 2", "rate = 3", ["rate"]),
        ("rate = 2", "rate = 2.0", ["rate"]),
        ("lambda x: x + rate", "lambda x: x + 1", ["hooks"]),
        ("[1, 2]", "[1, 3]", ["data"]),
        ('{"a", "b"}', '{"a", "c"}', ["data"]),
        ("arange(6.0)", "arange(7.0)", ["array"]),
        ("arange(6.0)", "arange(6)", ["array"]),
        ("arange(6.0)", "arange(6.0).reshape(2, 3)", ["array"]),
        ("net.depth = 1", "net.depth = 2", ["net"]),
        ("width = 3", "width = 4", ["Net", "net"]),
        ("self.width)", "-self.width)", ["Net", "net"]),
        ("return 5", "return 4", ["Net", "net"]),
        ("return 6", "return 4", ["Net", "net"]),
        ("step(self): return 1", "step(self): return 2", ["Net", "net"]),
        ("\ndef twice", "\nnp = functools\ndef twice", ["np"]),
    ],
)
def test_what_has_changed_is_named(old: str, new: str, names: list[str]) -> None:
    assert BASE.count(old) == 1
    found = changed(prints(BASE), prints(BASE.replace(old, new)))
    assert found[:1] == names[:1]
    assert sorted(found) == sorted(names)


def test_a_try_block_that_ends_elsewhere_is_another_code() -> None:
    first = "def train(config):\n    try:\n        a()\n        b()\n    except KeyError:\n        c()\n"
    other = "def train(config):\n    try:\n        a()\n    except KeyError:\n        c()\n    else:\n        b()\n"
    assert changed(prints(first), prints(other)) == ["code"]


def test_a_module_that_was_edited_after_its_import_is_stale(beside: Callable[..., Any]) -> None:
    module = beside(
        "edited_it", "FACTOR = 2\ndef scale(x):\n    return x * FACTOR\nclass Layer:\n    def f(self): return 1\n"
    )
    source = "import edited_it\ndef train(config):\n    return edited_it.scale(config)"
    train = ran(source)["train"]
    assert stale_modules(train) == []
    beside(
        "edited_it",
        "# a comment\nFACTOR = 2\ndef scale(x):\n    return x * FACTOR\nclass Layer:\n    def f(self): return 1\n",
        load=False,
    )
    assert stale_modules(train) == [], "comments change nothing"
    beside(
        "edited_it",
        "FACTOR = 2\ndef scale(x):\n    return x + FACTOR\nclass Layer:\n    def f(self): return 1\n",
        load=False,
    )
    assert stale_modules(train) == ["edited_it"]
    assert stale_modules(module.Layer) == ["edited_it"]
    assert stale_modules(len) == []
    beside("edited_it", "def scale(x:", load=False)
    assert stale_modules(train) == [], "whoever is in the middle of an edit knows"


def test_a_module_beside_the_notebook_counts_by_its_file(beside: Callable[..., Any]) -> None:
    source = "import beside_it\ndef train(config): return beside_it.scale(config)"
    beside()
    before = prints(source)
    assert set(before) == {"code", "beside_it"}
    beside(source=MODULE.replace("BASE = 2", "# why\n\nBASE = 2"))
    assert prints(source) == before
    beside(source=MODULE.replace('"a": 1', '"a": 2'))
    assert changed(before, prints(source)) == ["beside_it"]
    beside()
    assert prints(source) == before
    beside(source=MODULE.replace("* BASE", "+ BASE"), load=False)
    edited = prints(source)
    beside(source=MODULE.replace("* BASE", "+ BASE"))
    assert changed(edited, prints(source)) == ["beside_it"], "what ran was not yet what the file says"


def test_a_module_counts_with_the_modules_beside_it_that_it_uses(beside: Callable[..., Any]) -> None:
    beside("under_it", "def f(x): return x")
    source = "import over_it\ndef train(config): return over_it.g(config)"
    beside("over_it", "from under_it import f\nimport under_it\ndef g(x): return f(x)")
    before = prints(source)
    beside("under_it", "def f(x): return -x")
    beside("over_it", "from under_it import f\nimport under_it\ndef g(x): return f(x)")
    assert changed(before, prints(source)) == ["over_it"]


def test_a_function_of_a_module_beside_counts_by_what_it_uses(beside: Callable[..., Any]) -> None:
    source = "from beside_it import scale\ndef train(config): return scale(config)"
    beside()
    before = prints(source)
    assert set(before) == {"code", "scale", "beside_it.BASE", "beside_it.math"}
    beside(source=MODULE.replace("BASE = 2", "BASE = 3"))
    assert changed(before, prints(source)) == ["beside_it.BASE"]
    beside(source=MODULE.replace("width = 3", "width = 4"))
    assert changed(before, prints(source)) == []


def test_partials_methods_and_callable_objects_count_by_what_is_bound() -> None:
    source = """
import functools
class Trainer:
    def __init__(self, data): self.data = data
    def fit(self, config): return config
    def __call__(self, config): return config + 1
def train(config, data): return config
a = functools.partial(train, data=DATA)
b = Trainer(DATA).fit
c = Trainer(DATA)
d = functools.partial(sorted, key=DATA)
"""
    for name, bound in (("a", "data"), ("b", "self"), ("c", "self"), ("d", "key")):
        first = prints(source, name, DATA=[1])
        assert prints(source, name, DATA=[1]) == first
        assert changed(first, prints(source, name, DATA=[2])) == [bound]
    assert (
        changed(prints(source, "c", DATA=1), prints(source.replace("config + 1", "config"), "c", DATA=1))[0] == "code"
    )
    assert changed(fingerprint(sorted), fingerprint(sum)) == ["code"]
    assert changed(prints(source, "Trainer", DATA=1), prints(source.replace("+ 1", "+ 2"), "Trainer", DATA=1)) == [
        "code"
    ]


def test_a_name_called_code_does_not_hide_the_code() -> None:
    source = "code = 'x'\ndef train(config): return code"
    assert changed(prints(source), prints(source.replace("'x'", "'y'"))) == ["train.code"]


def test_changed_puts_code_first() -> None:
    old, new = {"code": "1", "a": "1", "gone": "1", "same": "1"}, {"a": "2", "code": "2", "new": "1", "same": "1"}
    assert changed(old, new) == ["code", "a", "new", "gone"]
    assert changed(old, old) == []


def test_large_data_is_read_once_and_fast() -> None:
    array = np.zeros(25_000_000)
    cell = ran("def train(config): return a, b, [a]", a=array, b={"again": array, "view": array[::2][:10]})
    started = time.monotonic()
    fingerprint(cell["train"])
    assert time.monotonic() - started < 5


# keys of configs

Pair = namedtuple("Pair", "a b")


@dataclass
class Options:
    lr: float
    layers: tuple[int, ...] = (1, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": {"x": None, "y": "z"}}, {"b": {"y": "z", "x": None}, "a": 1}),
        (1, 1.0),
        ({"lr": 1.0, "n": 0.0}, {"lr": 1, "n": -0.0}),
        (np.float64(0.1), 0.1),
        (np.int32(3), 3),
        ({"on": np.True_}, {"on": True}),
        (np.str_("adam"), "adam"),
        ({1: "a"}, {1.0: "a"}),
        ({"a", "b", "c"}, {"c", "b", "a"}),
        (OrderedDict(a=1, b=2), {"b": 2, "a": 1}),
        (np.arange(6.0), np.arange(6.0)),
        (np.arange(6).reshape(2, 3).T, np.asfortranarray(np.arange(6).reshape(2, 3).T)),
        (torch.ones(3), torch.ones(3)),
        (torch.arange(10)[:3], torch.arange(3)),
        (Options(0.1), Options(0.1)),
        (Options(1.0), Options(1)),
        (Pair(1, 2), Pair(1.0, 2)),
        (SimpleNamespace(a=1, b=2), SimpleNamespace(b=2, a=1)),
        (pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 2]})),
        (float("nan"), float("nan")),
        (Path("a/b"), Path("a/b")),
        (["ab", "ab"], ["ab", "".join(["a", "b"])]),
        (lambda x: x + 1, lambda x: x + 1),
        (10**400, 10**400),
        (1e300, int(1e300)),
    ],
)
def test_equal_configs_have_one_key(one: Any, other: Any) -> None:
    assert config_key(one) == config_key(other)
    assert len(config_key(one)) == 16


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (0, False),
        ({"a": 1}, {"a": True}),
        (0, None),
        ("1", 1),
        ("a", b"a"),
        ((1, 2), [1, 2]),
        ([1, 2], [2, 1]),
        ([[1], 2], [[1, 2]]),
        (["a", "bc"], ["ab", "c"]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ({}, []),
        ({"a": None}, {}),
        (0.1, 0.1 + 1e-16),
        (float("inf"), float("-inf")),
        (np.arange(6.0), np.arange(6)),
        (np.arange(6), np.arange(6).reshape(2, 3)),
        (torch.ones(3), torch.zeros(3)),
        (Options(0.1), Options(0.2)),
        (Options(0.1), {"lr": 0.1, "layers": (1, 2)}),
        (torch.nn.ReLU, torch.nn.GELU),
        (lambda x: x + 1, lambda x: x + 2),
        (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    ],
)
def test_unlike_configs_have_two(one: Any, other: Any) -> None:
    assert config_key(one) != config_key(other)


def test_a_method_added_to_a_dataclass_leaves_its_configs_alone() -> None:
    source = "from dataclasses import dataclass\n@dataclass\nclass C:\n    a: int = 1\nconfig = C()"
    assert config_key(ran(source)["config"]) == config_key(ran(source + "\nC.new = lambda self: 1")["config"])


def test_a_function_in_a_config_counts_with_what_it_uses() -> None:
    source = "k = 1\ndef act(x): return k\nconfig = {'act': act}"
    key = config_key(ran(source)["config"])
    assert key == config_key(ran("# again\n" + source)["config"])
    assert key != config_key(ran(source.replace("k = 1", "k = 2"))["config"])


def test_nothing_raises() -> None:
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    cyclic: dict[str, Any] = {}
    cyclic["me"] = cyclic
    odd = [deep, cyclic, threading.Lock(), (i for i in []), sys, len, [].append, np.sum, torch.float32, type, object()]
    keys = [config_key(config) for config in odd]
    assert len(set(keys)) == len(odd)
    assert config_key(deep) == keys[0]
    very_deep: list[Any] = []
    for _ in range(100_000):
        very_deep = [very_deep]
    assert config_key(very_deep)


def test_ten_thousand_configs_take_no_time() -> None:
    configs = [{"lr": i / 7, "opt": "adam", "layers": [1, 2, 3], "sub": {"a": None}} for i in range(10_000)]
    started = time.monotonic()
    assert len({config_key(config) for config in configs}) == 10_000
    assert time.monotonic() - started < 5
