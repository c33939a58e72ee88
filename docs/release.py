"""Make the shipped pack: `python docs/release.py pack` converts, `python docs/release.py card figures.json` describes.

Between the two, benchmarks/ measure the pack; the card holds their figures and is one of the pack's files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NANO = ROOT / "assets" / "zephyra-nano"
TEMPLATE = Path(__file__).parent / "model_card.md"
HOW = (
    "; adapters with `--threads 1 --limit 100`, usefulness with `--limit 1000` (every held-out prompt), conversion "
    "with `--threads 1`, exactness with `--sequences 1000`; the machine had nothing else to do where times are told"
)
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
LICENSE = "CC-BY-SA-4.0"
ORIGIN = "trained by the zephyra authors; data and licences: README.md"
DESCRIPTION = "A very small general base with nine specialists and the router that picks them."
DOMAINS = {
    "code": "short Python functions and one-liners",
    "dictionary": "definitions and synonyms of English words",
    "geography": "facts about countries, of the World Factbook",
    "math": "arithmetic, equations, units, short word problems",
    "medical": "plain answers about diseases; no medical advice",
    "regex": "regular expressions from a description",
    "shell": "one-line commands for a Unix shell",
    "sql": "SQLite statements for a described table",
    "stories": "stories, continuations, questions about a passage",
}


FEATURES, EXAMPLES_OF_A_DOMAIN = "router_features.jsonl.gz", 80


def make_pack(runs: Path, data: Path) -> None:
    from zephyra_converters.convert import Options, convert

    options = Options(
        quantization="Q8_0",
        adapters={name: runs / "adapters" / name for name in DOMAINS},
        router=runs / "router",
        draft=runs / "draft",
        name="zephyra-nano",
        description=DESCRIPTION,
        license=LICENSE,
        origin=ORIGIN,
        descriptions=DOMAINS,
        generation={"temperature": 0.0, "max_tokens": 256, "repeat_penalty": 1.0, "no_repeat_ngram_size": 8},
        force=True,
        progress=lambda done, total, what: print(f"{done}/{total} {what}"),
    )
    for part in convert(runs / "base", NANO, options).parts:
        print(part.file, part.quantization, part.bytes, part.verification)
    put_features(NANO, data)


def put_features(root: Path, data: Path) -> None:
    """What the pack's router needs to learn a newcomer: features of some prompts of every domain and of none."""
    from zephyra_cli.examples import Example
    from zephyra_cli.pack import Pack
    from zephyra_cli.router_features import write_features
    from zephyra_cli.specialists import look_at
    from zephyra_fusion.train.router_data import drawn_examples

    manifest = json.loads((root / "zephyra.json").read_text(encoding="utf-8"))
    drawn = drawn_examples(data, manifest["router"]["labels"], EXAMPLES_OF_A_DOMAIN)
    write_features(root / FEATURES, look_at(Pack.read(root), [Example(prompt, label) for prompt, label in drawn]))
    manifest["router"]["features"] = FEATURES
    record(manifest, root, FEATURES, ORIGIN)
    (root / "zephyra.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def record(manifest: dict[str, Any], pack: Path, file: str, source: str) -> None:
    data = (pack / file).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    manifest["files"][file] = {"sha256": sha256, "size": len(data), "license": LICENSE, "source": source}


def figures_as_markdown(measured: dict[str, Any], *, tables: bool) -> str:
    """One table of the figures that are asked for; with `tables`, all figures, and each benchmark's matrices below."""
    lines = ["| what | measured | target | by |", "| --- | --- | --- | --- |"]
    for name, benchmark in measured.items():
        for figure in benchmark["figures"].values():
            bound = "≥ " if "at_least" in figure else "≤ " if "at_most" in figure else ""
            limit = figure.get("at_least", figure.get("at_most"))
            asked = limit is not None or name == "usefulness"  # where shares are asked for, without a target
            if not (asked or tables):
                continue
            target = "" if limit is None else f"{bound}{_shown(limit, figure['unit'])}"
            value = _shown(figure["value"], figure["unit"]) + ("" if figure.get("reached", True) else " (missed)")
            lines.append(f"| {figure['text']} | {value} | {target} | `{name}` |")
    first = next(iter(measured.values()))
    machine = ", ".join(f"{key} {value}" for key, value in first["machine"].items() if key != "load")
    lines += [
        "",
        f"Measured on {first['date']}: {machine}. Each by `python benchmarks/NAME.py`{HOW}.",
    ]
    for name, benchmark in measured.items() if tables else ():
        for title, table in benchmark["tables"].items():
            lines += ["", f"**{title}** (`{name}`)", "", _row(table["columns"]), _row(["---"] * len(table["columns"]))]
            lines += [_row([f"{v:.2f}" if isinstance(v, float) else v for v in row]) for row in table["rows"]]
    return "\n".join(lines)


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _shown(value: float, unit: str) -> str:
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.4g} {unit}".strip()


def write_card(figures: Path) -> None:
    """The pack's README.md from the template, and the block of figures in the project's own."""
    measured: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
    text = TEMPLATE.read_text(encoding="utf-8").replace("{{figures}}", figures_as_markdown(measured, tables=True))
    (NANO / "README.md").write_text(text, encoding="utf-8")
    manifest = json.loads((NANO / "zephyra.json").read_text(encoding="utf-8"))
    record(manifest, NANO, "README.md", "docs/release.py")
    (NANO / "zephyra.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    block = f"{BEGIN}\n{figures_as_markdown(measured, tables=False)}\n{END}"
    (ROOT / "README.md").write_text(before + block + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("pack", "card"))
    parser.add_argument("path", type=Path, nargs="?", help="the runs folder, or the figures")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="default: %(default)s")
    options = parser.parse_args()
    if options.step == "pack":
        make_pack(options.path or ROOT / "runs" / "nano", options.data)
    else:
        write_card(options.path or ROOT / "figures.json")


if __name__ == "__main__":
    main()
