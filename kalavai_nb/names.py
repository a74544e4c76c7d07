"""Which names of the notebook a cell reads before it binds them.

Read off the bytecode of each statement, which knows all of Python's scopes; a block that may not run, such as a branch,
binds names for itself alone.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import inspect
import re
import types
from collections.abc import Iterator

# statements of which a part may not have run, so that the names they bind may still be free afterwards
_BRANCHING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.Match)
_COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}
# magics whose argument, or body, is Python that runs in the cell's own namespace
_PYTHON_MAGICS = {"time", "timeit", "prun", "capture", "memit", "mprun"}


def free_names(source: str) -> dict[str, int]:
    """{name: line of first use} of the names that ``source`` reads before it binds them.

    ``source`` may hold IPython's syntax. Raises SyntaxError, with the cell's own lines, where it cannot run.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    # the transformation drops leading empty lines
    empty = len(source) - len(source.lstrip("\n"))
    try:
        tree = ast.parse(TransformerManager().transform_cell(source), filename="<cell>")
        ast.increment_lineno(tree, empty)
        _compiled(*tree.body)
    except SyntaxError as error:
        error.lineno = (error.lineno or 0) + (empty if error.text else 0)
        raise
    bound: set[str] = set()
    direct: dict[str, int] = {}
    deferred: dict[str, int] = {}
    _read(tree.body, bound, direct, deferred)
    # a function's names are read when it is called, so a name bound anywhere in the cell will do
    return {**{name: line for name, line in deferred.items() if name not in bound}, **direct}


def _read(body: list[ast.stmt], bound: set[str], direct: dict[str, int], deferred: dict[str, int]) -> None:
    """Go through statements in order; adds to all three."""
    for statement in body:
        head, blocks = _parts(statement)
        now, later, stored = _uses(_compiled(head)) if head else ({}, {}, set())
        for text in _python_in_magics(head) if head else ():
            for name in free_names(text):
                now.setdefault(name, statement.lineno)
        direct.update({name: line for name, line in now.items() if name not in bound | direct.keys()})
        deferred.update({name: line for name, line in later.items() if name not in deferred})
        may_not_run = isinstance(statement, _BRANCHING)
        if not may_not_run:
            bound |= stored
        for block in blocks:
            _read(block, bound | stored if may_not_run else bound, direct, deferred)


def _parts(statement: ast.stmt) -> tuple[ast.stmt | None, list[list[ast.stmt]]]:
    """A statement without its blocks (None where nothing is left of it), and the blocks."""
    empty: list[ast.stmt] = [ast.Pass()]
    head: ast.stmt | None = statement
    blocks: list[list[ast.stmt]] = []
    match statement:
        case ast.Break() | ast.Continue():
            head = None
        case ast.If() | ast.While():
            head, blocks = ast.Expr(statement.test), [statement.body, statement.orelse]
        case ast.For() | ast.AsyncFor():
            head = type(statement)(statement.target, statement.iter, empty, [])
            blocks = [statement.body, statement.orelse]
        case ast.With() | ast.AsyncWith():
            head, blocks = type(statement)(statement.items, empty), [statement.body]
        case ast.Try() | ast.TryStar():
            types_ = [ast.Expr(handler.type) for handler in statement.handlers if handler.type]
            head = ast.If(ast.Constant(True), [*types_, *empty], [])
            handlers = [[*_named(handler), *handler.body] for handler in statement.handlers]
            blocks = [statement.body + statement.orelse, *handlers, statement.finalbody]
        case ast.Match():
            cases = [ast.match_case(case.pattern, case.guard, empty) for case in statement.cases]
            head, blocks = ast.Match(statement.subject, cases), [case.body for case in statement.cases]
    if head is not None and head is not statement:
        head = ast.fix_missing_locations(ast.copy_location(head, statement))
    return head, blocks


def _named(handler: ast.ExceptHandler) -> list[ast.stmt]:
    """A statement that binds what ``except … as name`` binds."""
    if not handler.name:
        return []
    bind = ast.Assign([ast.Name(handler.name, ast.Store())], ast.Constant(None))
    return [ast.fix_missing_locations(ast.copy_location(bind, handler))]


def _uses(code: types.CodeType) -> tuple[dict[str, int], dict[str, int], set[str]]:
    """({name: line} read at once before it is bound, the same read by functions, names bound)."""
    now: dict[str, int] = {}
    later: dict[str, int] = {}
    stored: set[str] = set()
    for instruction in dis.get_instructions(code):
        name, line = instruction.argval, (instruction.positions.lineno or 0) if instruction.positions else 0
        if instruction.opname in ("STORE_NAME", "STORE_GLOBAL"):
            stored.add(name)
        elif instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL", "DELETE_NAME") and name not in stored:
            now.setdefault(name, line)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner_now, inner_later, _ = _uses(constant)
            if not constant.co_flags & inspect.CO_OPTIMIZED or constant.co_name in _COMPREHENSIONS:
                # the body of a class or comprehension is run at once
                now = {**inner_now, **now}
                later = {**inner_later, **later}
                continue
            later = {**inner_later, **inner_now, **later}
    return now, later, stored


def _compiled(*statements: ast.stmt) -> types.CodeType:
    module = ast.Module(list(statements), [])
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code: types.CodeType = compile(module, "<cell>", "exec", flags=flags, dont_inherit=True)
    return code


def _python_in_magics(statement: ast.stmt) -> Iterator[str]:
    """Python that IPython's transformation has turned into text: ``%time f(x)``, ``%%time`` cells, ``!ls {x}``."""
    for node in ast.walk(statement):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if node.func.attr in ("run_line_magic", "run_cell_magic") and texts[:1] and texts[0] in _PYTHON_MAGICS:
            candidates = texts[1:]
        elif node.func.attr in ("system", "getoutput", "run_line_magic", "run_cell_magic"):
            candidates = re.findall(r"\{(.+?)\}|\$(\w+)", " ".join(texts))
            candidates = [part for pair in candidates for part in pair if part]
        else:
            continue
        for candidate in candidates:
            # options of the magic stand before its statement
            text = re.sub(r"^(\s*-\w+(\s+\d+)?)+\s+", "", candidate)
            text = re.sub(r"!\w$", "", text)
            # an option may have a word for its value
            for start in [0, *(match.end() for match in re.finditer(r"^(\s*\S+\s+)", text))]:
                with contextlib.suppress(SyntaxError):
                    free_names(text[start:])
                    yield text[start:]
                    break
