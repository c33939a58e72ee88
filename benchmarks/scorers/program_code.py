"""Python: does it parse, is it the same program, does it compute what the reference computes?

The data has no tests. Where the reference is one self-contained function, its own results on a fixed pool of
arguments are the test: the answer must define a function of that name and give the same result on every one of them.
"""

from __future__ import annotations

import ast
import copy
import itertools
import signal
from collections.abc import Callable
from typing import Any

from scorers.fenced import run_fenced

_MODULES = (
    "bisect",
    "collections",
    "datetime",
    "functools",
    "heapq",
    "itertools",
    "math",
    "random",
    "re",
    "string",
    "sys",
)
_VALUES: tuple[Any, ...] = (
    0, 1, 2, 3, 7, 10, 12, -5, 100, 2.5, "", "a", "hello", "Hello World", "level", "a1 b2 c3", "banana", "12",
    [], [1], [3, 1, 2], [4, -2, 9, 0, 7, 12, 15], [5, 5, 5, 1], [-3, 8, 6, 10, 21, 4],
    ["b", "a", "cc"], ["apple", "fig", "kiwi", ""], [[1, 2], [3, 4]], [(1, 2), (3, 0)], (1, 2, 3),
    {"a": 1, "b": 2}, {1, 2, 3}, True, None,
)  # fmt: skip
_FEWEST, _MOST = 4, 60  # results that make a test
_SECONDS = 0.2  # of processor time for one call


def parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def same_program(answer: str, reference: str) -> bool:
    """The same syntax tree: layout, quotes and redundant brackets do not count."""
    return parses(answer) and parses(reference) and ast.dump(ast.parse(answer)) == ast.dump(ast.parse(reference))


def passes(answer: str, reference: str) -> bool | None:
    """Whether the answer computes what the reference does; None where the reference gives no test."""
    name, arity = _signature(reference)
    if not name or not 1 <= arity <= 3:
        return None
    test = run_fenced("program_code", {"code": reference, "name": name, "arity": arity})
    if not test or len(test["results"]) < _FEWEST or len(set(map(str, test["results"].values()))) < 2:
        return None
    if same_program(answer, reference):
        return True
    given = run_fenced("program_code", {"code": answer, "name": name, "arity": arity, "only": list(test["results"])})
    return given is not None and given["results"] == test["results"]


def main(task: dict[str, Any]) -> dict[str, Any]:
    """In the child: the results of the function by the number of its arguments in the pool."""
    signal.signal(signal.SIGVTALRM, _too_long)
    namespace = _namespace()
    try:
        exec(compile(task["code"], "answer", "exec"), namespace)  # fenced
    except BaseException:
        return {"results": {}}
    function = namespace.get(task["name"])
    results: dict[str, str] = {}
    if not callable(function):
        return {"results": results}
    wanted = set(task["only"]) if "only" in task else None
    for number, arguments in enumerate(_arguments(task["arity"])):
        key = str(number)
        if wanted is None or key in wanted:
            _try(function, arguments, key, results)
        if len(results) == _MOST or (wanted and key in wanted and key not in results):
            break  # enough for a test, or one that an answer has failed
    return {"results": results}


def _try(function: Callable[..., Any], arguments: tuple[Any, ...], key: str, results: dict[str, str]) -> None:
    signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
    try:
        result = function(*copy.deepcopy(arguments))
        if hasattr(result, "__next__"):
            result = list(itertools.islice(result, 100))
        text = _written(result)
    except BaseException:
        return
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if " at 0x" not in text and len(text) <= 1000:
        results[key] = text


def _too_long(*_: object) -> None:
    raise TimeoutError


def _written(result: Any) -> str:
    """A result as text: sets in order, 2 and 2.0 apart, floats to nine digits."""
    if isinstance(result, float):
        return f"{result:.9g} float"
    if isinstance(result, (set, frozenset)):
        return f"set {sorted(map(_written, result))}"
    if isinstance(result, (list, tuple)):
        return f"{type(result).__name__} {[_written(item) for item in result]}"
    if isinstance(result, dict):
        return f"dict {sorted((_written(key), _written(value)) for key, value in result.items())}"
    return repr(result)


def _arguments(arity: int) -> list[tuple[Any, ...]]:
    """Every value alone; for more parameters, every 13th of all combinations or so (always the same ones)."""
    combinations = list(itertools.product(_VALUES, repeat=min(arity, 2)))
    chosen = combinations if arity == 1 else combinations[:: 13 if arity == 2 else 29]
    return [(*values, _VALUES[number % len(_VALUES)]) if arity == 3 else values for number, values in enumerate(chosen)]


def _signature(code: str) -> tuple[str, int]:
    """Name and number of parameters without a default of the only function at the top of the reference."""
    functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)] if parses(code) else []
    if len(functions) != 1:
        return "", 0
    parameters = functions[0].args
    return functions[0].name, len(parameters.posonlyargs) + len(parameters.args) - len(parameters.defaults)


def _namespace() -> dict[str, Any]:
    """Builtins without files and without most modules."""
    import builtins

    allowed = {name: getattr(builtins, name) for name in dir(builtins) if name not in ("open", "input", "breakpoint")}

    def importer(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] not in _MODULES:
            raise ImportError(name)
        return __import__(name, *rest)

    allowed["__import__"] = importer
    return {"__builtins__": allowed, "__name__": "answer"}
