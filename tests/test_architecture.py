"""The design as a test: who may import whom, where torch may appear, how long a file may be, and the README's tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "zephyra_fusion": ROOT / "zephyra_fusion",
    "zephyra_converters": ROOT / "converters" / "zephyra_converters",
    "zephyra_cli": ROOT / "zephyra_cli",
}
LONGEST = 300

# A package imports those below it in this table and itself, nothing else of ours.
ALLOWED = {
    "zephyra_fusion": {"zephyra_fusion"},
    "zephyra_converters": {"zephyra_fusion", "zephyra_converters"},
    "zephyra_cli": {"zephyra_fusion", "zephyra_converters", "zephyra_cli"},
}
GROUND_FLOOR = {
    "errors",
    "config",
    "config_json",
    "field_types",
    "layer_config",
    "types",
    "registry",
    "chat",
    "router",
    "draft",
    "values",
}  # standard library

# Above the ground floor torch is free in zephyra_fusion. Elsewhere only these may import it (or what imports it),
# and only inside a function.
TORCH_GATEWAYS = {
    "zephyra_converters.torch_file",
    "zephyra_converters.adapter_merge",
    "zephyra_cli.backends.fusion",
    "zephyra_cli.backends.fusion_context",
    "zephyra_cli.backends.fusion_model",
    "zephyra_cli.backends.fusion_rows",
    "zephyra_cli.backends.token_choice",
    "zephyra_cli.commands.train",
}
_TORCH_PARTS = (
    "model layers lora checkpoint train router_model generate sampling merge prune parallel static_step rows"
).split()
NEEDS_TORCH = ("torch", *(f"zephyra_fusion.{part}" for part in _TORCH_PARTS))

# Outside packages that may be imported at top level; everything else is imported by the function that needs it.
EAGER = {
    "zephyra_fusion": {"torch", "numpy", "safetensors", "tokenizers"},
    "zephyra_converters": {"numpy"},
    "zephyra_cli": {"typer"},
}

# Floors of zephyra_cli: an import goes down or sideways, never up. (Imports for type checking alone are free.)
FLOORS = [
    {"backends.protocol", "conversations", "database", "devices", "domain", "interruption", "pack", "prompt", "routing"}
    | {"settings", "text", "home_file", "config_file", "code_block", "markdown_block", "prompt_template"}
    | {"held_out", "calibration", "likelihood", "detectors", "examples", "router_features", "manifest"}
    | {"structure", "vouched", "ahead"},
    {"backends"},
    {"bare", "isolated_engine", "loading", "prompt_router", "template"},
    {"engine"},
    {"session", "openai", "worker", "evaluation", "speed"},
    {"follow", "progress", "ui", "batch_file"},
    {"batch"},
    {
        "disk",
        "download",
        "hollow",
        "hub",
        "install",
        "model_card",
        "patience",
        "pull",
        "pull_adapter",
        "push",
        "quantization",
        "store",
    }
    | {"complete", "replay"},
    {"pack_change", "specialists"},
    {"line_editor", "proposal", "shell_keys"},
    {"chat", "log", "markdown", "server", "slash", "transcript"},
    {"talk"},
    {"commands"},
    {"app", "command_line", "ending", "__main__"},
]


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *parts]).removesuffix(".__init__"), path


MODULES = dict(modules())


def imports(path: Path, *, top_level: bool) -> set[str]:
    """Full names of what a module imports: at top level only, or anywhere; never what is for type checking alone."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            found.update(f"{module}.{a.name}" if f"{module}.{a.name}" in MODULES else module for a in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def test_packages_import_in_one_direction() -> None:
    for name, path in MODULES.items():
        package = name.split(".")[0]
        ours = {other.split(".")[0] for other in imports(path, top_level=False)} & set(PACKAGES)
        assert ours <= ALLOWED[package], name


def test_only_light_packages_are_imported_at_top_level() -> None:
    for name, path in MODULES.items():
        package = name.split(".")[0]
        outside = {other.split(".")[0] for other in imports(path, top_level=True)} - set(PACKAGES)
        outside -= sys.stdlib_module_names
        assert outside <= EAGER[package], name


def test_torch_stays_behind_its_gateways() -> None:
    for name, path in MODULES.items():
        if name.startswith("zephyra_fusion"):
            continue
        assert not any(under(other, NEEDS_TORCH) for other in imports(path, top_level=True)), name
        if any(under(other, NEEDS_TORCH) for other in imports(path, top_level=False)):
            assert name in TORCH_GATEWAYS, name


@pytest.mark.parametrize("module", sorted(GROUND_FLOOR))
def test_the_ground_floor_is_standard_library_only(module: str) -> None:
    allowed = {"zephyra_fusion", *(f"zephyra_fusion.{other}" for other in GROUND_FLOOR)}
    for other in imports(MODULES[f"zephyra_fusion.{module}"], top_level=False):
        assert other in allowed or other.split(".")[0] in sys.stdlib_module_names, other


def test_importing_the_ground_floor_loads_nothing_else() -> None:
    code = "".join(f"import zephyra_fusion.{module}\n" for module in sorted(GROUND_FLOOR))
    code += "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    before = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True)
    loaded = set(done.stdout.split()) - {name.split(".")[0] for name in before.stdout.split()}
    assert loaded - sys.stdlib_module_names == {"zephyra_fusion"}


def floor(name: str) -> int:
    part = name.removeprefix("zephyra_cli").removeprefix(".")
    for number, names in enumerate(FLOORS):
        if part in names or part.split(".")[0] in names:
            return number
    assert part == "", f"{name} has no floor"
    return 0


def test_the_command_line_imports_downwards() -> None:
    for name, path in MODULES.items():
        if name.startswith("zephyra_cli"):
            for other in imports(path, top_level=False):
                if other.startswith("zephyra_cli.") and other.count(".") and other in MODULES:
                    assert floor(other) <= floor(name) or lazily_starts(name, other), f"{name} imports {other}"


def lazily_starts(name: str, other: str) -> bool:
    """The lazy tree of commands is reached by name only; nothing else may look up."""
    return name == "zephyra_cli.command_line" and other.startswith("zephyra_cli.commands")


def test_modules_import_without_what_only_unix_has() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["fcntl", "termios", "tty", "pty", "resource", "grp", "pwd"]))
import importlib, pkgutil
import zephyra_cli, zephyra_converters
for package in (zephyra_cli, zephyra_converters):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_file_is_too_long() -> None:
    paths = [
        path for folder in (*PACKAGES.values(), ROOT / "benchmarks", ROOT / "tests") for path in folder.rglob("*.py")
    ]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def tree_in_readme() -> list[str]:
    """The lines of README's fenced block that follows the comment `<!-- tree -->`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return readme.partition("<!-- tree -->")[2].split("```")[1].splitlines()[1:]


def named_in(tree: list[str]) -> set[Path]:
    """Paths of a tree: two spaces deeper is one folder deeper, names stand before the first gap of two spaces.

    `name/` is a folder, a bare name is a Python module, anything with a dot is the file itself.
    """
    found: set[Path] = set()
    folders: list[str] = []
    for line in tree:
        depth = (len(line) - len(line.lstrip())) // 2
        del folders[depth:]
        for name in line.strip().split("  ")[0].split():
            found.add(Path(*folders, name if "." in name or name.endswith("/") else name + ".py"))
            if name.endswith("/"):
                folders.append(name.rstrip("/"))
    return found


def test_the_readmes_tree_is_what_lies_on_the_disk() -> None:
    named = named_in(tree_in_readme())
    assert {str(path) for path in named if not (ROOT / path).exists()} == set()
    existing = {path.relative_to(ROOT) for path in MODULES.values() if not path.stem.startswith("__")}
    assert {str(path) for path in existing - named} == set()
