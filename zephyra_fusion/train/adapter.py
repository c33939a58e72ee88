"""Training LoRA adapters: one specialist for each domain over one frozen base."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch

from zephyra_fusion.chat import PAD
from zephyra_fusion.checkpoint import load_adapter, load_checkpoint, save_adapter
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.lora import LoraConfig, add_adapter, set_adapters
from zephyra_fusion.model import ZephyraFusion
from zephyra_fusion.sources import read_records, source_file
from zephyra_fusion.tokenizer import Tokenizer
from zephyra_fusion.train.base import batches, language_model_loss
from zephyra_fusion.train.config import AdapterRecipe, PhaseConfig
from zephyra_fusion.train.data import Mixture, TokenizedSource
from zephyra_fusion.train.device import pick_device
from zephyra_fusion.train.exercises import exercises
from zephyra_fusion.train.loop import Loop, Report
from zephyra_fusion.train.optimizer import make_optimizers

SHORTEST_EXERCISE = 24  # tokens; a training that reads n tokens of exercises needs no more than n / 24 of them


def train_adapters(recipe: AdapterRecipe, resume: bool, report: Report | None) -> Path:
    """A PEFT folder for every domain of the recipe; with `resume`, finished ones are kept.

    ZephyraError, before anything is trained: the base, a domain's texts or its adapter to go on from is not there.
    """
    needed = [Path(recipe.base) / "config.json"]
    needed += [Path(recipe.initial) / domain / "adapter_config.json" for domain in recipe.domains if recipe.initial]
    if missing := [path for path in needed if not path.is_file()]:
        raise ZephyraError(f"there is no '{missing[0]}'", hint="base and initial are folders of earlier stages")
    for domain in recipe.domains:
        for split in ("train", "valid"):
            source_file(Path(recipe.data), f"domains/{domain}", split)
    for index, (domain, steps) in enumerate(recipe.domains.items()):
        folder = Path(recipe.output) / domain
        if not (resume and (folder / "adapter_config.json").exists()):
            _train_one(recipe, domain, steps, folder, resume, index, report)
    return Path(recipe.output)


def _add_adapter(recipe: AdapterRecipe, model: ZephyraFusion, domain: str) -> LoraConfig:
    """The adapter to be trained, made resident: an earlier one as it is, its rank too, or one that does nothing yet."""
    if recipe.initial:
        return load_adapter(model, domain, Path(recipe.initial) / domain)
    lora = LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.lora_alpha,
        use_rslora=recipe.lora.use_rslora,
        target_modules=recipe.lora.target_modules,
        lora_dropout=recipe.lora.dropout,
    )
    add_adapter(model, domain, lora)
    return lora


def _train_one(
    recipe: AdapterRecipe, domain: str, steps: int, folder: Path, resume: bool, index: int, report: Report | None
) -> None:
    base, data = Path(recipe.base), Path(recipe.data)
    tokenizer_path = base / "tokenizer.json"
    pad = Tokenizer(tokenizer_path).id(PAD)
    torch.manual_seed(recipe.seed + index)
    device = pick_device(recipe.device)
    model: ZephyraFusion = load_checkpoint(base, device=device)
    model.requires_grad_(False)
    lora = _add_adapter(recipe, model, domain)
    set_adapters(model, {domain: 1.0})
    source = {
        split: TokenizedSource.load(
            data, f"domains/{domain}", tokenizer_path, Path(recipe.output) / "tokens", split=split
        )
        for split in ("train", "valid")
    }
    shares = {"train": 1.0}
    if share := recipe.exercises.get(domain, 0.0):
        held_back = list(read_records(data, f"domains/{domain}", "valid"))
        tokens = steps * recipe.batch_size * recipe.accumulation * recipe.sequence_length * share
        generated = islice(exercises(recipe.seed, without=held_back), int(tokens / SHORTEST_EXERCISE) + 1)
        source["exercises"] = TokenizedSource.encode(generated, Tokenizer(tokenizer_path))
        shares = {"train": 1 - share, "exercises": share}
    only = recipe.loss_on == "response"

    def mixture(shares: Mapping[str, float], seed: int) -> Mixture:
        return Mixture(source, shares, length=recipe.sequence_length, seed=seed, pad=pad, response_only=only)

    held_out = mixture({"valid": 1.0}, 0).batch(24)
    plain_loss = language_model_loss(model)
    loss = torch.compile(plain_loss) if recipe.compile else plain_loss

    def evaluate() -> Mapping[str, float]:
        x, y = (torch.from_numpy(a).to(device) for a in held_out)
        return {f"valid/{domain}": float(plain_loss(x, y))}

    loop = Loop(
        domain,
        model,
        loss,
        make_optimizers(model, recipe.optimizer),
        device=device,
        folder=folder,
        recipe=recipe,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        evaluate=evaluate,
        report=report,
        resume=resume,
    )
    phase = PhaseConfig(
        steps=steps,
        mixture={domain: 1.0},
        sequence_length=recipe.sequence_length,
        batch_size=recipe.batch_size,
        accumulation=recipe.accumulation,
        warmup_steps=min(recipe.warmup_steps, steps // 2),
        decay="cosine",
        final_lr=recipe.final_lr,
    )
    loop.run([phase], [batches(mixture(shares, recipe.seed), recipe.batch_size)])
    save_adapter(model, domain, lora, folder, base=str(base))
    loop.checkpoint.unlink(missing_ok=True)
