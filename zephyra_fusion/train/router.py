"""Training tiny ada: cross-entropy on disturbed prompts, then temperature and threshold on held-out ones."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.router_model import RouterConfig, RouterModel, save_router
from zephyra_fusion.sources import read_lines, read_records, source_file
from zephyra_fusion.tokenizer import Tokenizer
from zephyra_fusion.train.config import OptimizerConfig, PhaseConfig, RouterRecipe
from zephyra_fusion.train.device import pick_device
from zephyra_fusion.train.loop import Loop, Report
from zephyra_fusion.train.optimizer import make_optimizers
from zephyra_fusion.train.router_data import NONE, disturb, framed, labelled_prompts, truncate

HELD_OUT = 0.04  # of the training prompts, for temperature and threshold: the valid splits stay unseen


def train_router(recipe: RouterRecipe, resume: bool, report: Report | None) -> Path:
    """Writes a router folder with calibrated temperature and threshold."""
    data, output = Path(recipe.data), Path(recipe.output)
    tokenizer = Tokenizer(Path(recipe.tokenizer) / "tokenizer.json")
    if foreign := sorted(set(recipe.frames) - set(recipe.labels)):
        raise ZephyraError(
            f"frames name '{foreign[0]}', which is no label", hint=did_you_mean(foreign[0], recipe.labels)
        )
    torch.manual_seed(recipe.seed)
    device = pick_device(recipe.device)
    config = RouterConfig(
        vocab_size=tokenizer.vocab_size, labels=recipe.labels, max_tokens=recipe.max_tokens, **recipe.model
    )
    model = RouterModel(config, dropout=recipe.dropout).to(device)
    prompts = labelled_prompts(recipe)
    chance = random.Random(recipe.seed)
    for texts in prompts.values():
        chance.shuffle(texts)
    held_out = {label: texts[: max(1, int(len(texts) * HELD_OUT))][:500] for label, texts in prompts.items()}
    learned = {label: texts[len(held_out[label]) :] for label, texts in prompts.items()}
    valid = {
        label: [r.prompt for r in read_records(data, f"domains/{label}", "valid") if r.prompt]
        for label in recipe.labels
        if label != NONE
    }

    def prompt(label: str) -> str:
        frames = recipe.frames.get(label, ())
        if frames and chance.random() < recipe.framed:
            return framed(chance.choice(frames), learned, label, chance)
        return chance.choice(learned[label])

    def draw() -> tuple[Tensor, Tensor]:
        labels = [chance.randrange(len(recipe.labels) + 1) for _ in range(recipe.batch_size)]
        labels = [min(label, len(recipe.labels) - 1) for label in labels]  # the last one, none, twice as often
        texts = [disturb(prompt(recipe.labels[label]), chance) for label in labels]
        return router_ids(tokenizer, texts, config.max_tokens), torch.tensor(labels)

    def predict(texts: Sequence[str]) -> Tensor:
        return predicted(model, tokenizer, texts, device)

    def evaluate() -> Mapping[str, float]:
        right = [predict(t[:200]).argmax(-1) == recipe.labels.index(label) for label, t in valid.items()]
        return {"valid/accuracy": float(torch.cat(right).float().mean())}

    optimizer = OptimizerConfig(matrix_optimizer="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay)
    loop = Loop(
        "router",
        model,
        lambda ids, labels: functional.cross_entropy(model(ids.clamp(min=0), ids >= 0), labels),
        make_optimizers(model, optimizer),
        device=device,
        folder=output,
        recipe=recipe,
        evaluate=evaluate,
        report=report,
        resume=resume,
    )
    phase = PhaseConfig(
        steps=recipe.steps, mixture={}, batch_size=recipe.batch_size, warmup_steps=recipe.warmup_steps, decay="cosine"
    )
    loop.run([phase], [draw])
    outside = [line["prompt"] for line in read_lines(source_file(data, recipe.threshold_set))][::2]
    save_router(model, calibrated(model, tokenizer, held_out, outside, recipe.keep_in_domain, device), output)
    return output


def router_ids(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> Tensor:
    """Ids `[B, T]`, -1 where a row has ended."""
    rows = [truncate(ids, max_tokens) or [0] for ids in tokenizer.encode_batch(texts)]
    ids = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(ids)


@torch.no_grad()
def predicted(model: RouterModel, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device) -> Tensor:
    """Logits `[texts, labels]`."""
    parts = []
    for start in range(0, len(texts), 64):
        ids = router_ids(tokenizer, texts[start : start + 64], model.config.max_tokens).to(device)
        parts.append(model(ids.clamp(min=0), ids >= 0).cpu())
    return torch.cat(parts)


def calibrated(
    model: RouterModel,
    tokenizer: Tokenizer,
    held_out: Mapping[str, Sequence[str]],
    outside: Sequence[str],
    keep: float,
    device: torch.device,
) -> RouterConfig:
    """Its config with temperature and threshold from prompts that it did not learn: of its labels, and of none."""
    labels = [label for label in model.config.labels if label in held_out]
    predictions = {label: predicted(model, tokenizer, held_out[label], device) for label in labels}
    temperature = fit_temperature(predictions, model.config.labels)
    inside = torch.cat([p for label, p in predictions.items() if label != NONE]) / temperature
    strange = predicted(model, tokenizer, outside, device) / temperature
    threshold = pick_threshold(inside, strange, model.config.labels, keep)
    return replace(model.config, temperature=temperature, threshold=threshold)


def fit_temperature(predictions: Mapping[str, Tensor], labels: Sequence[str]) -> float:
    """The T that minimizes the cross-entropy of softmax(logits / T) (Guo et al., arXiv:1706.04599)."""
    known = [(n, predictions[label]) for n, label in enumerate(labels) if label in predictions]
    logits = torch.cat([part for _, part in known])
    targets = torch.cat([torch.full((len(part),), n) for n, part in known])
    candidates = np.exp(np.linspace(np.log(0.25), np.log(4.0), 200))
    losses = [float(functional.cross_entropy(logits / t, targets)) for t in candidates]
    return float(candidates[int(np.argmin(losses))])


def pick_threshold(inside: Tensor, outside: Tensor, labels: Sequence[str], keep: float) -> float:
    """The highest probability below which the router may abstain and still keep `keep` of the in-domain prompts.

    Not higher than what sends 95 % of `outside` to the base: beyond that, abstaining only costs.
    """
    none = labels.index(NONE)

    def confidence(logits: Tensor) -> Tensor:
        probability, label = logits.softmax(-1).max(-1)
        return torch.where(label == none, 0.0, probability)

    kept = float(torch.quantile(confidence(inside), 1 - keep))
    sent = float(torch.quantile(confidence(outside), 0.95))
    return max(0.0, min(kept, sent))
