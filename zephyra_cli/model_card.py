"""The model card of a pack (README.md of its repository), from what the manifest knows of parts, figures, licences.

Its head is what the Hugging Face Hub reads (https://huggingface.co/docs/hub/model-cards, "model card metadata").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from zephyra_cli.pack import Pack

MARK = "<!-- written by zephyra push; a card without this line is left as it is -->"


def model_card(pack: Pack, manifest: Mapping[str, Any], repository: str) -> str:
    """The card as Markdown with its YAML head. `manifest` holds the figures that `Pack` does not."""
    name = repository.split("/")[1]
    usage = f'```sh\nzephyra pull hf:{repository}\nzephyra generate -m {name} "…"\n```'
    sections = [
        "\n".join(_head(pack, manifest)),
        f"# {name}\n\n{MARK}\n\n{_plain(pack.description) or 'A pack for zephyra.'}\n\n{_summary(pack)}",
        f"## Use\n\n{usage}\n\nThe same files without zephyra: `{pack.base}` and the adapters run in llama.cpp.",
        "## Parts and measured figures",
        _table(("part", "file", "type", "bytes", "measured"), _parts(pack, manifest)),
        _FIGURES if '"verification"' in json.dumps(manifest) else "Nothing was measured when the parts were converted.",
        "## Licences and sources\n\n" + _table(("file", "licence", "source", "sha256"), _files(pack)),
    ]
    return "\n\n".join(sections) + "\n"


_FIGURES = (
    "The figures compare the logits of each file in llama.cpp with those of the model it was converted from, on fixed "
    "prompts: the largest and the mean difference, how often both prefer the same token, and the Kullback-Leibler "
    "divergence (nats). They say how true the conversion is, not how good the model."
)


def _head(pack: Pack, manifest: Mapping[str, Any]) -> Iterator[str]:
    """YAML; a JSON string is a YAML string."""
    yield "---"
    known = re.fullmatch(r"[A-Za-z0-9.-]+", pack.license)
    yield f"license: {pack.license.lower() if known else 'other'}"
    if pack.license and not known:
        yield f"license_name: {json.dumps(pack.license)}"
    yield "library_name: zephyra"
    yield "tags:\n- zephyra\n- gguf"
    if pack.adapters:
        yield "- lora"
    if (source := pack.source) is not None:
        yield f"base_model: {json.dumps(source.repository)}"
    yield "---"


def _summary(pack: Pack) -> str:
    size = f"{pack.parameters / 1e6:,.1f} M parameters" if pack.parameters else "parameters not counted"
    parts = [f"Base: {pack.architecture or 'unknown architecture'}, {size}, {pack.quantization or 'type not named'}"]
    if pack.context_length:
        parts.append(f"context {pack.context_length:,}")
    if pack.adapters:
        parts.append(f"{len(pack.adapters)} domains")
    if (router := pack.router) is not None:
        parts.append(f"a router of {len(router.labels)} labels that abstains below {100 * router.threshold:.1f} %")
    return ", ".join(parts) + "."


def _parts(pack: Pack, manifest: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    entries: list[tuple[str, Any]] = [("base", manifest.get("base"))]
    entries += [(f"domain {name}: {a.description}", manifest["adapters"][name]) for name, a in pack.adapters.items()]
    entries += [(part, manifest[part]) for part in ("router", "draft") if manifest.get(part)]
    for label, entry in entries:
        file, kind = str(entry["file"]), str(entry.get("quantization", ""))
        record = pack.files.get(file)
        yield label, f"`{file}`", kind, f"{record.size:,}" if record else "", _measured(entry.get("verification"))


def _measured(figures: Any) -> str:
    """As in `zephyra convert`."""
    if not isinstance(figures, dict):
        return "not measured"
    known = {key: float(value) for key, value in figures.items() if isinstance(value, int | float)}
    shown = [
        f"{word} {known[key]:{form}}"
        for key, word, form in (
            ("max_abs_diff", "max", ".1e"),
            ("mean_abs_diff", "mean", ".1e"),
            ("top1_agreement", "top-1", ".1%"),
            ("kl_divergence", "KL", ".1e"),
        )
        if key in known
    ]
    return ", ".join(shown) or "not measured"


def _files(pack: Pack) -> Iterator[tuple[str, ...]]:
    for name, file in pack.files.items():
        yield (
            f"`{name}`",
            file.license or pack.license or "not named",
            file.source or "not named",
            f"`{file.sha256[:16]}…`",
        )


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    """One line of text that breaks no table."""
    return " ".join(text.split()).replace("|", "\\|")
