"""Domains join, leave, merge and shrink, over a tiny pack whose router's weights are random."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Run
from zephyra_cli import specialists, store
from zephyra_cli.engine import Engine
from zephyra_cli.examples import Example, read_examples, read_prompts
from zephyra_cli.pack import Pack
from zephyra_cli.router_features import read_features, write_features
from zephyra_cli.settings import Settings
from zephyra_cli.specialists import Newcomer, look_at
from zephyra_fusion.errors import ZephyraError

WORDS = {
    "shell": "find files larger folder list names home megabyte",
    "sql": "select count people where age group order name",
    "none": "hello weather friend lovely evening thanks again nice",
    "music": "song album guitar singer melody tune band chorus",
}


def prompts(domain: str, count: int, seed: int = 0) -> list[str]:
    """Different prompts of a few of the domain's words each."""
    dice, words = random.Random(f"{domain}{seed}"), WORDS[domain].split()
    return [" ".join(dice.sample(words, 4)) for _ in range(count)]


@pytest.fixture
def pack(tiny_pack: Path, home: Path) -> Pack:
    """tiny_pack installed, with examples of its domains."""
    root = home / "models" / "tiny"
    shutil.copytree(tiny_pack, root)
    others = [Example(prompt, domain) for domain in ("shell", "sql", "none") for prompt in prompts(domain, 40)]
    write_features(root / "router_features.jsonl.gz", look_at(Pack.read(root), others))
    manifest = json.loads((root / "zephyra.json").read_text())
    manifest["router"]["features"] = "router_features.jsonl.gz"
    manifest["files"]["router_features.jsonl.gz"] = {"sha256": "", "size": 0}
    (root / "zephyra.json").write_text(json.dumps(manifest))
    return Pack.read(root)


@pytest.fixture
def music(tiny_adapters: dict[str, Path]) -> Newcomer:
    return Newcomer(name="music", adapter=tiny_adapters["c"], prompts=prompts("music", 30), license="CC0-1.0")


def add(pack: Pack, newcomer: Newcomer) -> dict[str, Any]:
    return specialists.add(pack, newcomer, lambda done, total, text: None)


def routes(pack: Pack, domain: str) -> list[str]:
    engine = Engine.open(pack, Settings(threads=1))
    try:
        return [engine.route(prompt).domain for prompt in prompts(domain, 20, seed=1)]
    finally:
        engine.close()


def test_a_newcomer_is_learned_from_thirty_examples_and_nothing_is_forgotten(pack: Pack, music: Newcomer) -> None:
    before = {domain: routes(pack, domain) for domain in ("shell", "sql", "none")}
    report = add(pack, music)
    changed = Pack.read(pack.root)
    assert routes(changed, "music").count("music") >= 18
    lost = sum(a != b for domain in before for a, b in zip(before[domain], routes(changed, domain), strict=True))
    assert lost <= 1
    assert report["router"]["accuracy"] >= 0.9 and report["router"]["examples"] == len(set(music.prompts))
    assert changed.adapters["music"].rank == 4 and "music" in changed.routed
    assert {"adapters/music.gguf", changed.newcomers_file, changed.features_file} <= set(changed.files)
    assert [line for line in store.verify(changed) if "unused" not in line] == []


def test_probabilities_still_sum_to_one(pack: Pack, music: Newcomer) -> None:
    add(pack, music)
    engine = Engine.open(Pack.read(pack.root), Settings(threads=1))
    route = engine.route("song melody guitar band")
    engine.close()
    assert set(route.probabilities) == {"shell", "sql", "none", "music"}
    assert sum(route.probabilities.values()) == pytest.approx(1.0)
    assert (route.domain, route.weights) == ("music", {"music": 1.0})


def test_a_second_newcomer_leaves_the_first(pack: Pack, music: Newcomer, tiny_adapters: dict[str, Path]) -> None:
    add(pack, music)
    WORDS["garden"] = "rose tulip soil water seeds bloom spade hedge"
    add(Pack.read(pack.root), Newcomer(name="garden", adapter=tiny_adapters["a"], prompts=prompts("garden", 30)))
    changed = Pack.read(pack.root)
    assert routes(changed, "garden").count("garden") >= 18
    assert routes(changed, "music").count("music") >= 18


def test_what_left_is_the_bases(pack: Pack, music: Newcomer) -> None:
    add(pack, music)
    specialists.remove(Pack.read(pack.root), "music")
    changed = Pack.read(pack.root)
    assert set(changed.adapters) == {"shell", "sql"} and not changed.newcomers
    assert not (pack.root / "adapters" / "music.gguf").exists()
    assert routes(changed, "music") == routes(pack, "music")
    specialists.remove(changed, "shell")
    changed = Pack.read(pack.root)
    assert changed.routed == {"sql"}
    assert "shell" not in {*routes(changed, "shell"), *routes(changed, "none")}
    specialists.remove(changed, "sql")
    bare = Pack.read(pack.root)
    assert bare.router is None and not bare.adapters and "router.gguf" not in bare.files


@pytest.mark.parametrize("method", ["cat", "svd", "ties", "dare"])
def test_a_merge_answers_for_both(pack: Pack, method: str) -> None:
    pytest.importorskip("torch")
    engine = Engine.open(pack, Settings(threads=1))
    parts = engine.route("find files").probabilities
    engine.close()
    report = specialists.merge(pack, ["shell", "sql"], "data", method, None)
    changed = Pack.read(pack.root)
    assert set(changed.adapters) == {"data"} and changed.adapters["data"].rank == report["rank"]
    assert report["rank"] == (12 if method == "cat" else 8)
    engine = Engine.open(changed, Settings(threads=1))
    probabilities = engine.route("find files").probabilities
    engine.close()
    assert probabilities["data"] == pytest.approx(parts["shell"] + parts["sql"])


def test_cat_is_the_exact_sum(pack: Pack, tiny_loras: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    import numpy as np

    from zephyra_converters.gguf_header import read_header
    from zephyra_converters.gguf_read import tensor_of

    specialists.merge(pack, ["shell", "sql"], "both", "cat", [0.75, 0.5])
    file = Pack.read(pack.root).path("adapters/both.gguf")
    header = read_header(file)
    name = "blk.0.attn_q.weight"
    a, b = (tensor_of(file, header.tensors[f"{name}.lora_{side}"]).read() for side in "ab")
    scale = header.metadata["adapter.lora.alpha"] / a.shape[0]
    wanted = sum(
        weight * scale_ * (b_ @ a_)
        for weight, (a_, b_, scale_) in ((0.75, tiny_loras["a"][name]), (0.5, tiny_loras["b"][name]))
    )
    assert np.abs(scale * (b @ a) - wanted).max() < 0.02 * np.abs(wanted).max()  # stored in F16 or Q8_0


def test_pruning_keeps_the_strongest_directions(pack: Pack) -> None:
    pytest.importorskip("torch")
    weighed = specialists.weigh(pack, ["shell", "sql"])["importance"]
    assert all(share > 0.1 for share in weighed.values())
    report = specialists.prune(pack, ["shell", "sql"], rank=4, energy=None)["domains"]
    assert report["shell"] == {"rank": 4, "lost": 0.0, "changed": False}
    assert report["sql"]["rank"] == 4 and 0.0 < report["sql"]["lost"] < 0.6
    assert Pack.read(pack.root).adapters["sql"].rank == 4


def test_what_cannot_be_is_refused_and_changes_nothing(
    pack: Pack, music: Newcomer, tiny_adapters: dict[str, Path], write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    import numpy as np

    wrong = {"general.architecture": "qwen3", "general.type": "adapter", "adapter.type": "lora"}
    odd = {"blk.0.attn_q.weight.lora_a": np.zeros((4, 32), np.float32)}
    odd["blk.0.attn_q.weight.lora_b"] = np.zeros((64, 4), np.float32)
    other = write_gguf(tmp_path / "other.gguf", wrong, odd)
    before = sorted((path, path.read_bytes()) for path in pack.root.rglob("*") if path.is_file())
    for newcomer, message in (
        (Newcomer(name="Shell", adapter=tiny_adapters["a"]), "has a domain 'shell' already"),
        (Newcomer(name="auto", adapter=tiny_adapters["a"]), "cannot be the name"),
        (Newcomer(name="con", adapter=tiny_adapters["a"]), "cannot be a file's name on every system"),
        (Newcomer(name="music", adapter=tiny_adapters["a"], prompts=[]), "0 different examples"),
        (Newcomer(name="music", adapter=other), "does not fit the base"),
        (Newcomer(name="music", adapter=tiny_adapters["a"], prompts=["a", "b"]), "2 different examples"),
    ):
        with pytest.raises(ZephyraError, match=message):
            add(pack, newcomer)
    with pytest.raises(ZephyraError, match="no domain 'shel'"):
        specialists.remove(pack, "shel")
    with pytest.raises(ZephyraError, match="at least two"):
        specialists.merge(pack, ["shell"], "x", "cat", None)
    assert sorted((path, path.read_bytes()) for path in pack.root.rglob("*") if path.is_file()) == before


def test_a_look_is_isolated_as_the_user_wishes(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def opened(pack: Pack, settings: Settings) -> Engine:
        asked.append(settings.isolate)
        raise ZephyraError("enough")

    monkeypatch.setattr(Engine, "open", opened)
    for wish in "true", "false", None:
        monkeypatch.setenv("ZEPHYRA_ISOLATE", wish) if wish else monkeypatch.delenv("ZEPHYRA_ISOLATE")
        with pytest.raises(ZephyraError, match="enough"):
            look_at(pack, [])
    assert asked == [True, False, None]


def test_a_pack_without_examples_says_what_it_lacks(tiny_pack: Path, tmp_path: Path, music: Newcomer) -> None:
    root = Path(shutil.copytree(tiny_pack, tmp_path / "plain"))
    with pytest.raises(ZephyraError, match="keeps nothing of its other domains") as error:
        add(Pack.read(root), music)
    assert "--others" in (error.value.hint or "")
    others = [Example(prompt, domain) for domain in ("shell", "sql", "none") for prompt in prompts(domain, 40)]
    add(Pack.read(root), Newcomer(**{**vars(music), "others": others}))
    assert "music" in Pack.read(root).routed


def test_the_embedded_model_is_copied_and_never_changed(
    tiny_pack: Path, home: Path, music: Newcomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "embedded", lambda: tiny_pack)
    before = (tiny_pack / "zephyra.json").read_bytes()
    report = add(Pack.read(tiny_pack), Newcomer(name="music", adapter=music.adapter))
    assert report["copied"] and report["path"] == str(home / "models" / "tiny")
    assert (tiny_pack / "zephyra.json").read_bytes() == before
    assert store.verify(Pack.read(home / "models" / "tiny")) == []
    with pytest.raises(ZephyraError, match="store has another model 'tiny'"):
        add(Pack.read(tiny_pack), Newcomer(name="more", adapter=music.adapter))


def test_the_commands(pack: Pack, tiny_adapters: dict[str, Path], zephyra: Run, tmp_path: Path) -> None:
    file = tmp_path / "music.txt"
    file.write_text("\n".join(prompts("music", 30)))
    done = zephyra(
        "domains", "add", "music", "--adapter", tiny_adapters["c"], "--examples", file, "-m", "tiny", "--json"
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["router"]["accuracy"] >= 0.9
    listed = json.loads(zephyra("domains", "-m", "tiny", "--json").stdout)["domains"]
    assert listed["music"] == {"description": "", "rank": 4, "routed": True}
    assert json.loads(zephyra("route", "-m", "tiny", "--json", "guitar song melody").stdout)["domain"] == "music"
    assert zephyra("domains", "remove", "music", "-m", "tiny").stdout == b"music left tiny\n"
    done = zephyra("domains", "remove", "musik", "-m", "tiny")
    assert done.returncode == 1 and b"no domain 'musik'" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "no UTF-8"),
        (b'{"prompt": 3}', "no text under"),
        (b'{"prompt": "a"}\n[]', "no JSON object"),
        (b'{"prompt": "a"', "not JSON"),
        (b"\x1f\x8bnot gzip", "cannot read"),
    ],
)
def test_odd_example_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ZephyraError, match=message):
        read_prompts(tmp_path / "x")


def test_example_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("\ufeffone\n\n two \none\n")
    assert read_prompts(tmp_path / "a") == ["one", "two"]
    (tmp_path / "b").write_text('{"prompt": "one"}\n\n{"prompt": "two", "domain": "x"}\n')
    assert read_prompts(tmp_path / "b") == ["one", "two"]
    (tmp_path / "c").write_text('{"prompt": "ü", "domain": "x"}\n{"prompt": "b", "domain": "none"}\n')
    assert read_examples(tmp_path / "c") == [Example("ü", "x"), Example("b", "none")]


def test_a_pack_keeps_features_and_no_text(pack: Pack, music: Newcomer) -> None:
    add(pack, music)
    changed = Pack.read(pack.root)
    kept = read_features(changed.path(changed.features_file), 3)
    assert len(kept) >= 100 and not any(sample.prompt for sample in kept)
    assert all(list(sample.tokens) == sorted(set(sample.tokens)) for sample in kept)
    with gzip.open(changed.path(changed.features_file), "rt") as lines:
        assert set(json.loads(next(lines))) == {"domain", "tokens", "shares"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"domain": "x", "tokens": [-1], "shares": [0, 0, 1]}', "no domain with its token ids"),
        ('{"domain": "x", "tokens": [1.5], "shares": [0, 0, 1]}', "no domain with its token ids"),
        ('{"tokens": [1], "shares": [0, 0, 1]}', "no domain with its token ids"),
        ('{"domain": "x", "tokens": [1], "shares": [0, 1]}', "3 labels"),
        ('{"domain": "x", "tokens": [1], "shares": [0, 1, NaN]}', "3 labels"),
        ("[]", "no JSON object"),
    ],
)
def test_damaged_features_are_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(line + "\n")
    with pytest.raises(ZephyraError, match=message):
        read_features(tmp_path / "f", 3)
