"""The torch backend: llama.cpp's texts, from GGUF files and checkpoint folders alike, and when it is chosen."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.process import Run
from zephyra_cli import store
from zephyra_cli.backends import choice
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.loading import load
from zephyra_cli.pack import Pack
from zephyra_cli.settings import Settings
from zephyra_fusion.draft import NgramDraft
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Message, SamplingParams

pytest.importorskip("torch")

from zephyra_cli.backends.fusion import FusionBackend

PROMPT = [50, 60, 70, 80, 90, 100, 110, 120, 130, 140]
TEXTS = ("naïve café <|end|> 𓀀", "  SELECT\n\n  1;", "", "\x00\x7f日本")


@pytest.fixture
def llama(tiny_gguf: Path) -> Iterator[LlamaBackend]:
    backend = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False)
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def folder(tiny_gguf: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a Hugging Face folder, its adapter "b" as a PEFT folder beside it."""
    from zephyra_converters.gguf_read import read_gguf
    from zephyra_converters.hf import write_hf
    from zephyra_converters.lora import read_lora_gguf
    from zephyra_converters.peft import write_peft

    root = tmp_path_factory.mktemp("folders")
    (root / "tiny").mkdir()
    (root / "b").mkdir()
    checkpoint = read_gguf(tiny_gguf)
    write_hf(checkpoint, root / "tiny")
    write_peft(read_lora_gguf(tiny_adapters["b"], checkpoint.config), root / "b")
    return root / "tiny"


def test_text_and_bytes_are_llama_cpps(llama: LlamaBackend, tiny_gguf: Path) -> None:
    torch = FusionBackend(tiny_gguf, device="cpu")
    for text in TEXTS:
        for special in False, True:
            assert torch.encode(text, special=special) == llama.encode(text, special=special)
    assert [torch.token_bytes(token) for token in range(320)] == [llama.token_bytes(token) for token in range(320)]
    assert (torch.stop_ids, torch.vocab_size, torch.context_length) == (llama.stop_ids, 320, 512)
    assert torch.vocabulary == llama.vocabulary and torch.parameters == llama.parameters
    torch.close()


def test_a_folder_is_the_same_model_and_a_peft_folder_the_same_adapter(
    folder: Path, llama: LlamaBackend, tiny_adapters: dict[str, Path]
) -> None:
    torch = FusionBackend(folder, device="cpu", threads=1)
    torch.add_adapter("b", folder.parent / "b")
    llama.add_adapter("b", tiny_adapters["b"])
    assert torch.stop_ids == llama.stop_ids
    for weights in {}, {"b": 0.7}:
        torch.set_adapters(weights)
        llama.set_adapters(weights)
        np.testing.assert_allclose(torch.logits(PROMPT), np.array(llama.logits(PROMPT)), atol=2e-3)
    torch.close()


@pytest.mark.parametrize(
    "options", [{"schema": '{"type": "array", "items": {"enum": [1, 22]}}'}, {"grammar": "root ::= [a-f]{9}"}]
)
def test_constrained_texts_are_the_same_on_both(options: dict[str, str], llama: LlamaBackend, tiny_gguf: Path) -> None:
    torch = FusionBackend(tiny_gguf, device="cpu", threads=1)
    params = SamplingParams(max_tokens=40, **options)
    assert list(torch.generate(PROMPT, params)) == list(llama.generate(PROMPT, params))
    torch.close()


def test_every_answer_is_a_cold_backends_answer(tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> None:
    """Switches, blends, edits and rewinds, n-gram drafts on and off: the cache never shows."""
    warm, cold = (FusionBackend(tiny_gguf, device="cpu", threads=1, live_mixes=2) for _ in range(2))
    for backend in warm, cold:
        for name, path in tiny_adapters.items():
            backend.add_adapter(name, path)
    dice = random.Random(3)
    text: list[int] = []
    cached = accepted = 0
    for turn in range(40):
        mix = dice.choice(({}, {"a": 1.0}, {"b": 0.5}, {"a": 0.5, "b": 0.5}))
        if dice.random() < 0.3:
            text = text[: dice.randrange(len(text) + 1)]
        prompt = text + [dice.randrange(6, 320) for _ in range(dice.randrange(1, 20))]
        warm.speculate(NgramDraft() if turn % 2 else None)
        warm.set_adapters(mix)
        assert warm.cached_tokens(prompt, mix) <= len(prompt) - 1
        params = SamplingParams(max_tokens=dice.randrange(1, 12))
        stop_after = dice.choice((1, 3, 99))
        generator = warm.generate(prompt, params)
        tokens = [token.id for token, _ in zip(generator, range(stop_after), strict=False)]
        generator.close()
        cached, accepted = cached + warm.usage.cached_tokens, accepted + warm.usage.accepted
        cold.set_adapters(mix)
        cold.forget()
        assert tokens == [token.id for token in cold.generate(prompt, params)][: len(tokens)]
        text = [] if len(prompt) > 300 else prompt + tokens
    assert cached > 100, "the test is about reuse"
    for backend in warm, cold:
        backend.close()


def test_one_golden_text_comes_out_of_both(home: Path) -> None:
    """The default pack, routed, greedy."""
    from zephyra_cli.engine import Answer, Engine, Request

    texts = {}
    for name in "llama", "torch":
        engine = Engine.open(store.find("zephyra-nano"), Settings(backend=name, device="cpu", threads=1))
        request = Request(
            messages=(Message("user", "Regex for strings of at least 3 letters"),),
            params=SamplingParams(max_tokens=40, temperature=0.0),
        )
        *_, answer = engine.generate(request)
        assert isinstance(answer, Answer) and answer.backend == name
        texts[name] = answer.text
        engine.close()
    assert texts["torch"] == texts["llama"] == "^[A-Za-z]{3,}$"


def test_a_checkpoint_folder_on_the_command_line(folder: Path, zephyra: Run) -> None:
    done = zephyra("generate", "-m", folder, "-n", "6", "--json", "find all files")
    result = json.loads(done.stdout)
    assert (done.returncode, result["backend"], result["device"]) == (0, "torch", "cpu")
    assert result["usage"]["completion_tokens"] == 6 and result["model"] == "tiny"
    refused = zephyra("generate", "-m", folder, "--backend", "llama", "hi")
    assert refused.returncode == 1 and b"checkpoint folder, which llama.cpp cannot run" in refused.stderr


@pytest.mark.parametrize(
    ("options", "folder_given", "accelerator", "size", "expected"),
    [
        ({}, False, False, 10, "llama"),
        ({}, False, True, 10, "llama"),
        ({}, False, True, choice.LARGE, "torch"),
        ({"device": "cpu"}, False, True, choice.LARGE, "llama"),
        ({"device": "cuda"}, False, True, 10, "torch"),
        ({"backend": "torch"}, False, False, 10, "torch"),
        ({"backend": "llama"}, False, True, choice.LARGE, "llama"),
        ({}, True, False, 0, "torch"),
    ],
)
def test_auto_chooses(
    options: dict[str, str],
    folder_given: bool,
    accelerator: bool,
    size: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tmp_path / "base"
    if folder_given:
        base.mkdir()
    else:
        with base.open("wb") as file:
            file.truncate(size)
    monkeypatch.setattr(choice, "accelerated", lambda: accelerator)
    assert choice.choose(base, Settings(**options))[0] == expected


def test_what_cannot_run_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    import torch

    with pytest.raises(ZephyraError, match="computes on the CPU, device 'cuda'"):
        choice.choose(tiny_gguf, Settings(backend="llama", device="cuda"))
    with pytest.raises(ZephyraError, match="torch backend has no --kv-type"):
        load(Pack.bare(tiny_gguf), Settings(backend="torch", kv_type="q8_0"))
    if not torch.cuda.is_available():
        with pytest.raises(ZephyraError, match="sees no device 'cuda'"):
            FusionBackend(tiny_gguf, device="cuda")
    with pytest.raises(ZephyraError, match="context is 513, this model allows 1 to 512"):
        FusionBackend(tiny_gguf, device="cpu", context=513)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ZephyraError):
        FusionBackend(tmp_path, device="cpu")


def test_a_model_too_large_for_the_cpu_is_not_sent_to_the_cpu(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("zephyra_fusion.checkpoint.load_weights", full)
    with pytest.raises(ZephyraError, match="cpu has no memory for them") as caught:
        FusionBackend(tiny_gguf, device="cpu")
    assert caught.value.hint == "a smaller model"


def test_choosing_imports_no_torch(zephyra: Run, tiny_pack: Path) -> None:
    done = zephyra("generate", "-m", tiny_pack, "-n", "1", "hi", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and b"| torch\n" not in done.stderr and b"zephyra_cli.backends.choice" in done.stderr


def test_a_fixed_cache_gives_the_growing_ones_text(tiny_gguf: Path) -> None:
    """What runs on CUDA, without its graphs: the same tokens, guesses and rewinds included."""
    from zephyra_cli.backends.fusion_context import FusionContext

    torch = FusionBackend(tiny_gguf, device="cpu", threads=1)
    both = [FusionContext(torch._model, 128, static=static) for static in (False, True)]
    for prompt in (PROMPT, [*PROMPT[:6], 7, 8, 9], PROMPT * 3):
        seen = []
        for context in both:
            cached = context.rewind(prompt)
            context.decode(prompt[cached:])
            chosen = [int(context.logits[-1].argmax())]
            context.decode(chosen, (3, 4, 5))
            chosen.append(int(context.logits[0].argmax()))
            context.drop_guesses()
            for _ in range(4):
                context.decode(chosen[-1:])
                chosen.append(int(context.logits[-1].argmax()))
            seen.append((cached, chosen))
        assert seen[0] == seen[1]
    torch.close()
