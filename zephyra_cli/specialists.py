"""The specialists of a pack: one joins, one leaves, several become one, all get smaller. The router follows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_cli.examples import Example
from zephyra_cli.pack import Pack, check_domain_name
from zephyra_cli.pack_change import PackChange
from zephyra_cli.router_features import read_features, write_features
from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.router import NONE

if TYPE_CHECKING:
    from zephyra_converters.newcomers import Sample

Report = dict[str, Any]
Progress = Callable[[int, int | None, str], None]
FEW = 30  # examples of a newcomer: with fewer, a warning


@dataclass(frozen=True, kw_only=True)
class Newcomer:
    """A domain that is to join: its adapter (a PEFT folder or a .gguf), and prompts that are its own.

    Without `prompts` the router does not learn it. `others`: labelled prompts of the domains that are there, for packs
    that keep none.
    """

    name: str
    adapter: Path
    prompts: Sequence[str] | None = None
    others: Sequence[Example] = ()
    description: str = ""
    license: str = ""
    source: str = ""
    verify: bool = True


def add(pack: Pack, newcomer: Newcomer, progress: Progress) -> Report:
    """The adapter converted and checked against its base, the router taught; what that did to the other domains.

    ZephyraError: a name that is taken, an adapter of another base, too few examples. Nothing is changed then.
    """
    check_domain_name(newcomer.name)
    if taken := [name for name in pack.adapters if name.casefold() == newcomer.name.casefold()]:
        raise ZephyraError(
            f"model '{pack.name}' has a domain '{taken[0]}' already", hint=f"zephyra domains remove {taken[0]}"
        )
    if pack.router is not None and newcomer.prompts is not None:
        _check_examples(pack, newcomer.prompts, newcomer)
    with PackChange(pack) as change:
        progress(0, 3, f"adapter {newcomer.name}")
        place = change.place(f"adapters/{newcomer.name}", ".gguf")
        entry = _bring(change.pack, newcomer, place)
        license = newcomer.license or pack.license
        file = change.record(place, license=license, source=newcomer.source or newcomer.adapter.name)
        change.manifest["adapters"][newcomer.name] = {"file": file, "description": newcomer.description, **entry}
        report: Report = {"domain": newcomer.name, "adapter": {"file": file, **entry}, "router": None}
        if pack.router is not None and newcomer.prompts is not None:
            progress(1, 3, "router")
            given = [*newcomer.others, *(Example(prompt, newcomer.name) for prompt in newcomer.prompts)]
            samples = [*_kept(pack), *look_at(pack, given)]
            report["router"] = _teach(change, samples, [*_newcomers(pack), newcomer.name])[newcomer.name]
        progress(2, 3, "manifest")
        return _done(change, report)


def remove(pack: Pack, name: str) -> Report:
    """The domain's adapter and its place in the router; its prompts are the base's from now on."""
    check_known(pack, [name])
    with PackChange(pack) as change:
        change.drop(change.manifest["adapters"].pop(name)["file"])
        rename = {label: NONE for label in _labels_of(pack, name)}
        kept = [replace(s, domain=NONE) if s.domain == name and rename else s for s in _kept(pack)]
        kept = [sample for sample in kept if sample.domain != name]
        _reroute(change, pack, rename, kept, [other for other in _newcomers(pack) if other != name])
        return _done(change, {"domain": name})


def merge(
    pack: Pack, names: Sequence[str], into: str, method: str, weights: Sequence[float] | None, **options: Any
) -> Report:
    """Several adapters made into one, and all their prompts its own. Without `weights`, equal shares of 1."""
    from zephyra_converters.adapter_merge import merge_adapters

    check_known(pack, names)
    check_domain_name(into)
    if len(set(names)) != len(names) or len(names) < 2:
        raise ZephyraError(f"merging needs at least two different domains, given: {', '.join(names)}")
    if into in pack.adapters and into not in names:
        raise ZephyraError(f"model '{pack.name}' has a domain '{into}' already", hint="merge into a new name")
    if weights is not None and len(weights) != len(names):
        raise ZephyraError(f"there are {len(weights)} weights for {len(names)} domains")
    shares = dict(zip(names, weights or [1 / len(names)] * len(names), strict=True))
    with PackChange(pack) as change:
        here = change.pack
        adapters, config = _read_adapters(here, names)
        merged = merge_adapters(adapters, into, shares, method, **options)
        place = change.place(f"adapters/{into}", ".gguf")
        entry = _write_adapter(here, merged, config, place)
        descriptions = [pack.adapters[name].description for name in names]
        old = [change.manifest["adapters"].pop(name) for name in names]
        licenses = dict.fromkeys(pack.files[item["file"]].license for item in old if item["file"] in pack.files)
        source = f"{method} of {', '.join(f'{share:g} {name}' for name, share in shares.items())}"
        file = change.record(place, license=" AND ".join(filter(None, licenses)), source=source)
        change.drop(*(item["file"] for item in old))
        said = "; ".join(filter(None, descriptions))
        change.manifest["adapters"][into] = {"file": file, "description": said, **entry}
        rename = {label: into for name in names for label in _labels_of(pack, name)}
        kept = [replace(s, domain=into) if s.domain in names else s for s in _kept(pack)]
        newcomers = [name for name in _newcomers(pack) if name not in names]
        newcomers += [into] if len(newcomers) < len(_newcomers(pack)) else []
        _reroute(change, pack, rename, kept, newcomers)
        report = {"domain": into, "merged": list(names), "method": method, "weights": shares}
        return _done(change, report | entry)


def weigh(pack: Pack, names: Sequence[str]) -> Report:
    """How far each adapter moves the weights that it touches, as a share of their norm."""
    from zephyra_converters.adapter_merge import importances
    from zephyra_converters.gguf_read import read_gguf

    adapters, _ = _read_adapters(pack, names)
    return {"model": pack.name, "importance": importances(adapters, read_gguf(pack.path(pack.base)))}


def prune(pack: Pack, names: Sequence[str], *, rank: int | None, energy: float | None) -> Report:
    """The adapters cut to their strongest directions; which of them got smaller, and what each lost."""
    from zephyra_converters.adapter_merge import prune_adapter

    with PackChange(pack) as change:
        here, report = change.pack, {}
        adapters, config = _read_adapters(here, names)
        for name, adapter in adapters.items():
            cut, lost = prune_adapter(adapter, rank=rank, energy=energy)
            if cut.parameters >= adapter.parameters:
                report[name] = {"rank": adapter.rank, "lost": 0.0, "changed": False}
                continue
            place = change.place(f"adapters/{name}", ".gguf")
            written = _write_adapter(here, cut, config, place)
            entry, record = change.manifest["adapters"][name], pack.files.get(pack.adapters[name].file)
            change.drop(entry["file"])
            entry.pop("verification", None)  # it was measured on the adapter as it was
            file = change.record(place, license=record.license if record else "", source=f"pruned {name}")
            entry |= {"file": file, **written}
            report[name] = {"rank": cut.rank, "lost": lost, "changed": True}
        if not any(item["changed"] for item in report.values()):
            return {"model": pack.name, "path": str(pack.root), "domains": report}
        return _done(change, {"domains": report})


def _done(change: PackChange, report: Report) -> Report:
    copied = change.copied
    changed = change.commit()
    return {"model": changed.name, "path": str(changed.root), "copied": copied, **report}


def check_known(pack: Pack, names: Sequence[str]) -> None:
    for name in names:
        if name not in pack.adapters:
            raise ZephyraError(f"model '{pack.name}' has no domain '{name}'", hint=did_you_mean(name, pack.adapters))


def look_at(pack: Pack, examples: Sequence[Example]) -> list[Sample]:
    """The examples as the pack's router sees them; their prompts are kept for reports alone."""
    from zephyra_cli.engine import Engine
    from zephyra_cli.settings import Settings, load
    from zephyra_converters.newcomers import Sample

    settings = Settings(threads=1, isolate=load({}).isolate)  # at this size a second thread only waits
    engine, samples = Engine.open(pack, settings), []
    try:
        for example in dict.fromkeys(examples):
            tokens, shares = engine.router.look(example.prompt)
            samples.append(Sample.of(example.prompt, example.domain, tokens, shares.values()))
    finally:
        engine.close()
    return samples


def _check_examples(pack: Pack, prompts: Sequence[str], newcomer: Newcomer) -> None:
    from zephyra_converters.newcomers import FEWEST

    if len(prompts) < FEWEST:
        raise ZephyraError(
            f"there are {len(prompts)} different examples of '{newcomer.name}', the router needs {FEWEST}",
            hint="30 to 50 prompts as users would type them make a good start",
        )
    if not pack.features_file and not newcomer.others:
        raise ZephyraError(
            f"model '{pack.name}' keeps nothing of its other domains, so its router cannot learn a new one",
            hint='--others FILE gives some ({"prompt": …, "domain": …} a line); without --examples the domain joins '
            "for -d alone",
        )


def _labels_of(pack: Pack, domain: str) -> list[str]:
    """The classifier's labels for which this domain answers."""
    router = pack.router
    return [label for label in router.labels if router.answers.get(label, label) == domain] if router else []


def _newcomers(pack: Pack) -> list[str]:
    return [newcomer.name for newcomer in pack.newcomers]


def _kept(pack: Pack) -> list[Sample]:
    file, router = pack.features_file, pack.router
    return read_features(pack.path(file), len(router.labels)) if file and router else []


def _reroute(
    change: PackChange, pack: Pack, rename: Mapping[str, str], kept: Sequence[Sample], newcomers: Sequence[str]
) -> None:
    """Who answers for which label now; the detectors learned again where there are any."""
    if pack.router is None:
        return
    answers = {**pack.router.answers, **rename}
    reached = {answers.get(label, label) for label in pack.router.labels} | set(newcomers)
    if not reached - {NONE}:
        change.drop(pack.router_file, pack.newcomers_file, pack.features_file)
        change.manifest["router"] = None
        return
    change.manifest["router"]["answers"] = answers
    if kept and (newcomers or pack.newcomers or kept != _kept(pack)):
        _teach(change, kept, newcomers)


def _teach(change: PackChange, samples: Sequence[Sample], newcomers: Sequence[str]) -> dict[str, Report]:
    """Learn a detector of every newcomer against all other samples, and keep their features for the next one."""
    router = change.manifest["router"]
    before, license = change.pack, change.manifest.get("license", "")
    change.drop(before.newcomers_file, before.features_file)
    samples = list(dict.fromkeys(samples))
    place = change.place("router_features", ".jsonl.gz")
    write_features(place, samples)
    router["features"] = change.record(place, license=license, source="features of example prompts, for newcomers")
    router.pop("newcomers", None)
    if not newcomers:
        return {}
    from zephyra_converters.newcomers import learn, write_newcomers

    rarity, learned = learn(before.path(before.base), newcomers, samples)
    place = change.place("router_newcomers", ".gguf")
    write_newcomers(place, rarity, learned)
    router["newcomers"] = {
        "file": change.record(place, license=license, source="learned from examples"),
        "domains": [detector.entry() for detector in learned],
    }
    return {detector.name: detector.report() for detector in learned}


def _bring(pack: Pack, newcomer: Newcomer, place: Path) -> Report:
    """Convert or copy the adapter to `place`; what the manifest says of it."""
    from zephyra_converters.gguf_check_lora import check_adapter
    from zephyra_converters.gguf_header import read_header
    from zephyra_converters.pack import adapter_type

    source, base = newcomer.adapter, pack.path(pack.base)
    if source.is_dir():
        from zephyra_converters.convert import Options, convert

        options = Options(base=base, quantization=adapter_type(pack.quantization or "Q8_0"), verify=newcomer.verify)
        part = convert(source, place, options).parts[0]
        entry: Report = {"rank": part.rank, "quantization": part.quantization}
        return entry | ({"verification": part.verification.to_dict()} if part.verification else {})
    header = check_adapter(source, read_header(base))
    try:
        shutil.copyfile(source, place)
    except OSError as error:
        raise ZephyraError(f"cannot copy '{source}': {error.strerror}") from None
    check_adapter(place, read_header(base))  # what was copied is what was checked
    sides = [tensor for name, tensor in header.tensors.items() if name.endswith(".lora_b")]
    return {"rank": max(tensor.shape[0] for tensor in sides), "quantization": sides[0].type_name}


def _read_adapters(pack: Pack, names: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """Adapters by name, and their base's config."""
    from zephyra_converters.gguf_read import read_gguf
    from zephyra_converters.lora import read_lora_gguf

    config = read_gguf(pack.path(pack.base)).config
    return {name: read_lora_gguf(pack.path(pack.adapters[name].file), config) for name in names}, config


def _write_adapter(pack: Pack, adapter: Any, config: Any, place: Path) -> Report:
    from zephyra_converters.gguf_check_lora import check_adapter
    from zephyra_converters.gguf_header import read_header
    from zephyra_converters.lora import write_lora_gguf
    from zephyra_converters.pack import adapter_type

    kind = adapter_type(pack.quantization or "Q8_0")
    write_lora_gguf(adapter, config, place, kind)
    check_adapter(place, read_header(pack.path(pack.base)))
    return {"rank": adapter.rank, "quantization": kind}
