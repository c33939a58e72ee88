"""Models of random weights, as large as wanted, to measure speed: the weights decide the text and not the time.

    python benchmarks/random_model.py FOLDER --size 500M

writes `base-Q8_0.gguf`, `base-Q4_K_M.gguf`, a draft of a tenth the size for both, and four adapters of rank 16 on all
seven matrices: in F16 (`adapters`), and in Q8_0 as `zephyra convert` makes them for a pack of either base
(`adapters-Q8_0`). The vocabulary is zephyra-nano's.

The text is made to be useful, though: attention counts for little, so that a greedy text walks from token to token and
ends in a circle, as text that repeats does; and the layers that the draft lacks change the next token only now and then
(--agreement), so that the draft is right as often as a good one.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

HEAD, DRAFT_LAYERS, ADAPTERS, RANK, CONTEXT = 128, 2, 4, 16, 4096
QUANTIZATIONS = ("Q8_0", "Q4_K_M")
ATTENTION = 0.01  # of its usual share in the next token


@dataclass(frozen=True)
class Size:
    layers: int
    width: int
    heads: int
    key_value_heads: int
    feed_forward: int


SIZES = {
    "tiny": Size(3, 256, 2, 1, 512),
    "100M": Size(14, 768, 6, 2, 2048),
    "500M": Size(26, 1280, 10, 2, 3584),
    "1B": Size(20, 2048, 16, 4, 6144),
}


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="500M", help="default: %(default)s")
    parser.add_argument("--agreement", type=float, default=0.03, help="weight of the layers that the draft lacks")
    options = parser.parse_args()
    build(options.folder, SIZES[options.size], options.agreement)


def build(folder: Path, size: Size, agreement: float) -> None:
    """Everything that is not there yet."""
    import numpy as np

    from zephyra_converters.gguf_read import read_gguf
    from zephyra_converters.lora import read_lora_gguf, write_lora_gguf
    from zephyra_converters.meter import Meter
    from zephyra_converters.quantize import Quantization, quantize

    for name in "adapters", "adapters-Q8_0":
        (folder / name).mkdir(parents=True, exist_ok=True)
    draft = Size(DRAFT_LAYERS, size.width, size.heads, size.key_value_heads, size.feed_forward)
    for name, shape in (("base", size), ("draft", draft)):
        targets = {kind: folder / f"{name}-{kind}.gguf" for kind in QUANTIZATIONS}
        if all(path.exists() for path in targets.values()):
            continue
        source = folder / f"{name}-F16.gguf"
        random = np.random.default_rng(1)  # the same for both: the draft is the beginning of the base
        write(source, metadata_of(shape), weights_of(shape, random, agreement))
        for kind, path in targets.items():
            quantize(source, path, Quantization.of(kind), None, Meter())
        source.unlink()
    config = read_gguf(folder / "base-Q8_0.gguf").config
    for number in range(ADAPTERS):
        random = np.random.default_rng(100 + number)
        keys: dict[str, Any] = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
        keys["adapter.lora.alpha"] = float(RANK)
        path = folder / "adapters" / f"a{number}.gguf"
        write(path, keys, lora_of(size, random))
        write_lora_gguf(read_lora_gguf(path, config), config, folder / "adapters-Q8_0" / path.name, "Q8_0")


def shapes(size: Size) -> dict[str, tuple[int, int]]:
    """Rows and columns of a layer's matrices."""
    queries, keys = size.heads * HEAD, size.key_value_heads * HEAD
    return {
        "attn_q": (queries, size.width),
        "attn_k": (keys, size.width),
        "attn_v": (keys, size.width),
        "attn_output": (size.width, queries),
        "ffn_gate": (size.feed_forward, size.width),
        "ffn_up": (size.feed_forward, size.width),
        "ffn_down": (size.width, size.feed_forward),
    }


def weights_of(
    size: Size, random: np.random.Generator, agreement: float, attention: float = ATTENTION
) -> Iterator[tuple[str, np.ndarray]]:
    import numpy as np

    vocabulary = len(vocabulary_of()["tokenizer.ggml.tokens"])
    ones = np.ones(size.width, np.float32)
    yield "token_embd.weight", uniform(random, vocabulary, size.width, scale=size.width**0.5)
    yield "output.weight", uniform(random, vocabulary, size.width, scale=2.0)
    yield "output_norm.weight", ones
    for layer in range(size.layers):
        late = agreement if layer >= DRAFT_LAYERS else 1.0
        for name, (rows, columns) in shapes(size).items():
            scale = {"attn_output": attention * late, "ffn_down": late}.get(name, 1.0)
            yield f"blk.{layer}.{name}.weight", uniform(random, rows, columns, scale=scale)
        yield f"blk.{layer}.attn_norm.weight", ones
        yield f"blk.{layer}.ffn_norm.weight", ones


def lora_of(size: Size, random: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    for layer in range(size.layers):
        for name, (rows, columns) in shapes(size).items():
            yield f"blk.{layer}.{name}.weight.lora_a", uniform(random, RANK, columns)
            yield f"blk.{layer}.{name}.weight.lora_b", uniform(random, rows, RANK, scale=0.02)


def uniform(random: np.random.Generator, rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
    """F16 `[rows, columns]` that keeps the size of what it is multiplied with, but for `scale`."""
    import numpy as np

    values = random.random((rows, columns), np.float32)
    values -= 0.5
    values *= scale * (12 / columns) ** 0.5
    return values.astype(np.float16)


def metadata_of(size: Size) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "random",
        "llama.block_count": size.layers,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": size.width,
        "llama.feed_forward_length": size.feed_forward,
        "llama.attention.head_count": size.heads,
        "llama.attention.head_count_kv": size.key_value_heads,
        "llama.attention.key_length": HEAD,
        "llama.attention.value_length": HEAD,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": HEAD,
        "llama.rope.freq_base": 10000.0,
        **vocabulary_of(),
    }


def vocabulary_of() -> dict[str, Any]:
    """zephyra-nano's, as its file has it."""
    from zephyra_cli import store
    from zephyra_converters.gguf_header import read_header

    pack = store.find("zephyra-nano", offline=True)
    metadata = read_header(pack.path(pack.base)).metadata
    return {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}


def write(path: Path, metadata: dict[str, Any], tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(path), metadata["general.architecture"])
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, [item.decode() if isinstance(item, bytes) else item for item in value])
        elif isinstance(value, bytes):
            writer.add_string(key, value.decode())
        else:
            adders[type(value)](key, value)
    for name, values in tensors:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
