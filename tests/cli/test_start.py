"""Start-up time is a published figure: what one answer may not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "rich",
    "numpy",
    "llama_cpp",
    "gguf",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "pydantic",
    "jinja2",
)


@pytest.mark.parametrize(
    "arguments", ["generate -n 1 -m PACK hello", "route -m PACK hello", "models show PACK", "--help"]
)
def test_nothing_heavy_is_imported(tiny_pack: Path, arguments: str) -> None:
    code = f"""
import sys
from zephyra_cli import app
status = app._run({arguments.replace("PACK", str(tiny_pack)).split()!r})
print(status, *{{name.split(".")[0] for name in sys.modules}}, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    status, *loaded = done.stderr.split()
    assert status == "0" and done.stdout
    assert set(loaded) & set(HEAVY) == set()


@pytest.mark.parametrize("log", ["--log", "--no-log"])
def test_the_log_is_imported_beside_the_model_and_opened_after_the_answer(tiny_pack: Path, log: str) -> None:
    code = f"""
import sys
from zephyra_cli import ahead, app, settings, ui
from zephyra_cli.log import FILE
del sys.modules["zephyra_cli.log"]
write, fetch = ui.write, ahead.fetch
ui.write = lambda text: (write(text), print("opened", (settings.home() / FILE).exists(), file=sys.stderr))
ahead.fetch = lambda: (print("loaded", "sqlite3" in sys.modules, file=sys.stderr), fetch())
app._run(["generate", "-n", "4", {log!r}, "-m", {str(tiny_pack)!r}, "hello"])
print("after", "sqlite3" in sys.modules, (settings.home() / FILE).exists(), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    told = done.stderr.splitlines()
    kept = log == "--log"
    assert set(told) == {"loaded False", "opened False", f"after {kept} {kept}"}


def test_one_command_does_not_load_the_others(tiny_pack: Path) -> None:
    code = f"""
import sys
from zephyra_cli import app
app._run(["generate", "-n", "1", "-m", {str(tiny_pack)!r}, "hello"])
print(*[name for name in sys.modules if name.startswith("zephyra_cli.commands.")], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert set(done.stderr.split()) == {"zephyra_cli.commands.generate", "zephyra_cli.commands.options"}


def test_little_is_imported_before_the_signals_are_taken_over() -> None:
    """Until then Ctrl-C prints a traceback."""
    code = """
import sys
before = set(sys.modules)
from zephyra_cli import app
print(*set(sys.modules) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("zephyra")} == {
        "zephyra_cli",
        "zephyra_cli.app",
        "zephyra_cli.ending",
        "zephyra_cli.interruption",
    }
    assert loaded & {"typing", "re"} == set()


def test_no_class_of_a_start_has_its_methods_compiled(tiny_pack: Path) -> None:
    """`zephyra_fusion.values` has the dataclass for what every start loads: the usual one takes 0.4 ms a class."""
    code = f"""
import dataclasses, sys
from zephyra_cli import app
app._run(["generate", "-n", "1", "-m", {str(tiny_pack)!r}, "hello"])
ours = [module for name, module in sys.modules.items() if name.startswith("zephyra_")]
classes = {{c for m in ours for c in vars(m).values() if isinstance(c, type) and dataclasses.is_dataclass(c)}}
print(len(classes), *[c.__name__ for c in classes if not hasattr(c, "__dataclass_defaults__")], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    count, *compiled = done.stderr.split()
    assert int(count) > 20 and compiled == []


def started(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_where_no_thread_can_be_started_everything_is_imported_in_its_place(tiny_pack: Path) -> None:
    done = started(f"""
import threading
def full(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = full
from zephyra_cli import app
raise SystemExit(app._run(["generate", "-n", "1", "-m", {str(tiny_pack)!r}, "hello"]))
""")
    assert done.returncode == 0 and done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("failing", "error", "said"),
    [
        ("zephyra_cli.backends.sampler", "ModuleNotFoundError('No module named it')", "No module named it"),
        ("zephyra_cli.backends.sampler", "MemoryError()", "error: not enough memory"),
        ("zephyra_cli.database", "ImportError('no sqlite')", "warning: no sqlite; the answer is not kept"),
    ],
)
def test_an_import_that_fails_beside_the_model_is_told_as_it_was(
    tiny_pack: Path, failing: str, error: str, said: str
) -> None:
    """The main thread, which waits for the importing module, is given half of it."""
    done = started(f"""
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == {failing!r}:
            time.sleep(0.5)
            raise {error}
sys.meta_path.insert(0, Slow())
from zephyra_cli import app
raise SystemExit(app._run(["generate", "--no-isolate", "-n", "1", "-m", {str(tiny_pack)!r}, "hello"]))
""")
    assert said in done.stderr and "cannot import name" not in done.stderr
    assert done.returncode == (0 if "warning" in said else 1)


def test_limits_are_looked_at_before_the_weights_are_read(tiny_pack: Path) -> None:
    done = started(f"""
from zephyra_cli.backends import weights
def never(*_):
    raise AssertionError("the weights are read")
weights.load_weights = never
from zephyra_cli import app
raise SystemExit(app._run(["generate", "--context", "100000", "--no-isolate", "-m", {str(tiny_pack)!r}, "hello"]))
""")
    assert done.returncode == 1 and "the context is 100000, this model allows 1 to" in done.stderr
