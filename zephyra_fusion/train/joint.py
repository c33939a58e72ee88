"""Training adapters and router together: the router's probabilities are the adapters' weights (document 001)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zephyra_fusion.chat import ASSISTANT, END, USER
from zephyra_fusion.checkpoint import load_adapter, load_checkpoint, save_adapter
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.lora import LoraConfig, route_adapters, set_adapters
from zephyra_fusion.model import ZephyraFusion
from zephyra_fusion.router_model import RouterModel, load_router, save_router
from zephyra_fusion.sources import Record, read_lines, read_records, source_file
from zephyra_fusion.tokenizer import Tokenizer
from zephyra_fusion.train.config import JointRecipe, PhaseConfig
from zephyra_fusion.train.data import IGNORED
from zephyra_fusion.train.device import pick_device
from zephyra_fusion.train.loop import Loop, Report
from zephyra_fusion.train.optimizer import make_optimizers
from zephyra_fusion.train.router import HELD_OUT, calibrated, router_ids
from zephyra_fusion.train.router_data import NONE


@dataclass(frozen=True)
class Examples:
    """Records as the loop's pair of tensors: what router and model read, and what they shall say."""

    tokenizer: Tokenizer
    labels: tuple[str, ...]
    window: int  # of the router
    length: int  # of the model's rows

    def batch(self, records: Sequence[tuple[str, Record]]) -> tuple[Tensor, Tensor]:
        """`[B, window + length]`: the router's ids, then the model's, -1 where they have ended; `[B, 1 + length]`:
        the label's number, then the response's ids one step early, `IGNORED` elsewhere."""
        prompts = [record.prompt or "" for _, record in records]
        user, end, assistant = (self.tokenizer.id(token) for token in (USER, END, ASSISTANT))
        rows = np.full((len(records), self.length), -1, dtype=np.int64)
        targets = np.full((len(records), self.length), IGNORED, dtype=np.int64)
        encoded = zip(
            self.tokenizer.encode_batch(prompts),
            self.tokenizer.encode_batch([record.text for _, record in records]),
            strict=True,
        )
        for row, target, (prompt, response) in zip(rows, targets, encoded, strict=True):
            ids = [user, *prompt, end, assistant, *response, end][: self.length + 1]
            row[: len(ids) - 1] = ids[:-1]
            target[: len(ids) - 1] = ids[1:]
            target[: len(prompt) + 2] = IGNORED
        routed = functional.pad(router_ids(self.tokenizer, prompts, self.window), (0, self.window), value=-1)
        routed = routed[:, : self.window]
        numbers = torch.tensor([[self.labels.index(label)] for label, _ in records])
        return torch.cat((routed, torch.from_numpy(rows)), 1), torch.cat((numbers, torch.from_numpy(targets)), 1)


class JointModel(nn.Module):
    """A frozen base with adapters, and the router whose probabilities weigh them, sequence by sequence."""

    def __init__(self, base: ZephyraFusion, router: RouterModel, names: Sequence[str]) -> None:
        super().__init__()
        self.base, self.router, self.names = base, router, names

    def loss(self, inputs: Tensor, labels: Tensor, window: int, routing: float, *, hard: bool = False) -> Tensor:
        """Of the responses, plus `routing` times the router's own; `hard`: the likeliest label at full weight."""
        routed, ids = inputs[:, :window], inputs[:, window:]
        logits = self.router(routed.clamp(min=0), routed >= 0)
        probabilities = logits.float().softmax(dim=-1)
        if hard:
            probabilities = functional.one_hot(probabilities.argmax(-1), logits.shape[-1]).float()
        order = [self.router.config.labels.index(name) for name in self.names]
        route_adapters(self.base, self.names, probabilities[:, order])
        said = self.base(ids.clamp(min=0))  # what follows a row's end is not looked at: attention is causal
        answers = functional.cross_entropy(said.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
        return answers + routing * functional.cross_entropy(logits, labels[:, 0])


def train_joint(recipe: JointRecipe, resume: bool, report: Report | None) -> Path:
    """Goes on from trained adapters and a trained router; writes `adapters/NAME` and `router`, calibrated anew."""
    data, output, base_folder = Path(recipe.data), Path(recipe.output), Path(recipe.base)
    torch.manual_seed(recipe.seed)
    device = pick_device(recipe.device)
    base = load_checkpoint(base_folder, device=device).requires_grad_(False)
    router = load_router(Path(recipe.router)).to(device)
    names = [label for label in router.config.labels if label != NONE]
    configs = _load_adapters(base, Path(recipe.adapters), names)
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    tokenizer = Tokenizer(base_folder / "tokenizer.json")
    examples = Examples(tokenizer, router.config.labels, router.config.max_tokens, recipe.sequence_length)
    model = JointModel(base, router, names)
    chance = random.Random(recipe.seed)
    sources = {**{name: f"domains/{name}" for name in names}, **({NONE: "chat"} if recipe.chat else {})}
    records = {label: _prompted(data, source, "train") for label, source in sources.items()}
    for listed in records.values():
        chance.shuffle(listed)
    held_out = {label: listed[: max(1, int(len(listed) * HELD_OUT))][:500] for label, listed in records.items()}
    learned = {label: listed[len(held_out[label]) :] or listed for label, listed in records.items()}
    valid = [(label, r) for label, source in sources.items() for r in _prompted(data, source, "valid")[:8]]
    judged = examples.batch(valid)
    known = sorted(learned)

    def draw() -> tuple[Tensor, Tensor]:
        labels = [chance.choice(known) for _ in range(recipe.batch_size)]
        return examples.batch([(label, chance.choice(learned[label])) for label in labels])

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return model.loss(inputs, labels, examples.window, recipe.routing)

    def evaluate() -> Mapping[str, float]:
        inputs, labels = (part.to(device) for part in judged)
        routed = inputs[:, : examples.window]
        right = router(routed.clamp(min=0), routed >= 0).argmax(-1) == labels[:, 0]
        lost = model.loss(inputs, labels, examples.window, 0.0, hard=True)
        return {"valid/loss": float(lost), "valid/accuracy": float(right.float().mean())}

    optimizers = make_optimizers(base, recipe.optimizer)
    optimizers += make_optimizers(router, replace(recipe.optimizer, lr=recipe.router_lr, matrix_optimizer="adamw"))
    loop = Loop(
        "joint",
        model,
        loss,
        optimizers,
        device=device,
        folder=output,
        recipe=recipe,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        evaluate=evaluate,
        report=report,
        resume=resume,
    )
    phase = PhaseConfig(
        steps=recipe.steps,
        mixture={},
        batch_size=recipe.batch_size,
        accumulation=recipe.accumulation,
        warmup_steps=min(recipe.warmup_steps, recipe.steps // 2),
        decay="cosine",
        final_lr=recipe.final_lr,
    )
    loop.run([phase], [draw])
    set_adapters(base, {})
    for name, config in configs.items():
        save_adapter(base, name, config, output / "adapters" / name, base=str(base_folder))
    prompts = {label: [record.prompt or "" for record in listed] for label, listed in held_out.items()}
    outside = [line["prompt"] for line in read_lines(source_file(data, recipe.threshold_set))][::2]
    save_router(
        router, calibrated(router, tokenizer, prompts, outside, recipe.keep_in_domain, device), output / "router"
    )
    loop.checkpoint.unlink(missing_ok=True)
    return output


def _load_adapters(base: ZephyraFusion, folder: Path, names: Sequence[str]) -> dict[str, LoraConfig]:
    if missing := [name for name in names if not (folder / name / "adapter_config.json").exists()]:
        raise ZephyraError(f"{folder} has no adapter for the router's labels {', '.join(missing)}")
    return {name: load_adapter(base, name, folder / name) for name in names}


def _prompted(data: Path, source: str, split: str) -> list[Record]:
    found = [record for record in read_records(data, source, split) if record.prompt]
    if not found:
        raise ZephyraError(f"{source} ({split}) in {data} has no record with a prompt")
    return found
