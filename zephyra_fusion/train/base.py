"""Training a base model, from nothing or on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from zephyra_fusion.chat import END, END_OF_TEXT, PAD
from zephyra_fusion.checkpoint import load_checkpoint, load_weights, save_checkpoint
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.moe import load_balancing_loss
from zephyra_fusion.model import ZephyraFusion
from zephyra_fusion.tokenizer import Tokenizer
from zephyra_fusion.train.config import BaseRecipe
from zephyra_fusion.train.data import IGNORED, Mixture, TokenizedSource
from zephyra_fusion.train.device import pick_device
from zephyra_fusion.train.loop import Batches, Loop, Report
from zephyra_fusion.train.optimizer import make_optimizers


def language_model_loss(model: ZephyraFusion) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean cross-entropy over the labels that are not `IGNORED`."""

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        logits = model(inputs)
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)

    return loss


def with_balance(model: ZephyraFusion, loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """`loss` plus `router_aux_loss_coef` times the load-balancing loss, where the model has experts."""
    coefficient = model.config.router_aux_loss_coef
    if not model.config.num_experts or not coefficient:
        return loss

    def balanced(inputs: Tensor, labels: Tensor) -> Tensor:
        return loss(inputs, labels) + coefficient * load_balancing_loss(model)

    return balanced


def batches(mixture: Mixture, size: int) -> Batches:
    def draw() -> tuple[Tensor, Tensor]:
        inputs, labels = mixture.batch(size)
        return torch.from_numpy(inputs), torch.from_numpy(labels)

    return draw


def _go_on_from(model: ZephyraFusion, folder: Path, tokenizer: Path) -> None:
    """The weights of an earlier checkpoint; its tokens must mean the same and its shape must be the recipe's."""
    theirs = folder / "tokenizer.json"
    if Tokenizer(theirs).vocabulary() != Tokenizer(tokenizer).vocabulary():
        raise ZephyraError(f"{theirs} is another tokenizer than {tokenizer}", hint="train with the checkpoint's own")
    weights = load_checkpoint(folder).state_dict()
    load_weights(model, weights, str(folder))


def train_base(recipe: BaseRecipe, resume: bool, report: Report | None) -> Path:
    """Phases of a mixture each; writes a checkpoint folder."""
    data, output, tokenizer_path = Path(recipe.data), Path(recipe.output), Path(recipe.tokenizer) / "tokenizer.json"
    tokenizer = Tokenizer(tokenizer_path)
    torch.manual_seed(recipe.seed)
    device = pick_device(recipe.device)
    pad = tokenizer.id(PAD)
    known = {"vocab_size": tokenizer.vocab_size, "pad_token_id": pad}
    ends = (tokenizer.id(END), tokenizer.id(END_OF_TEXT))
    config = FusionConfig.from_dict({**known, "eos_token_id": ends, **recipe.model})
    model = ZephyraFusion(config)
    if recipe.initial:
        _go_on_from(model, Path(recipe.initial), tokenizer_path)
    model.to(device)
    cache = output / "tokens"

    def load(name: str, split: str = "train") -> TokenizedSource:
        return TokenizedSource.load(data, name, tokenizer_path, cache, split=split)

    names = sorted({name for phase in recipe.phases for name in phase.mixture})
    sources = {name: load(name) for name in names}
    length = recipe.phases[0].sequence_length
    held_out = {
        name: Mixture({name: load(name, "valid")}, {name: 1}, length=length, seed=0, pad=pad).batch(16)
        for name in recipe.validation
    }
    plain_loss = language_model_loss(model)
    training_loss = with_balance(model, plain_loss)
    loss = torch.compile(training_loss) if recipe.compile else training_loss

    def evaluate() -> dict[str, float]:
        return {
            f"valid/{name}": float(plain_loss(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)))
            for name, (x, y) in held_out.items()
        }

    loop = Loop(
        "base",
        model,
        loss,
        make_optimizers(model, recipe.optimizer),
        device=device,
        folder=output,
        recipe=recipe,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        evaluate=evaluate,
        report=report,
        resume=resume,
    )
    mixtures = [
        Mixture(sources, phase.mixture, length=phase.sequence_length, seed=recipe.seed + 1000 * index, pad=pad)
        for index, phase in enumerate(recipe.phases)
    ]
    draws = [batches(mixture, phase.batch_size) for mixture, phase in zip(mixtures, recipe.phases, strict=True)]
    loop.run(recipe.phases, draws)
    save_checkpoint(model, output, tokenizer=tokenizer_path)
    return output
