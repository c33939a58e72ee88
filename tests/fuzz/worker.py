"""`python worker.py TARGET SEEDS START STOP`: one odd file after the other, in a process that may die of them.

For each case a line: its number, then `ok`, `refused` or what is wrong. Slow and greedy cases are wrong too.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.fuzz.mutation import mutated_bytes, mutated_json, mutated_template
from zephyra_fusion.errors import ZephyraError

SECONDS, SPARE = 2.0, 64 * 2**20  # processor time of a case; memory beside three times its file


class Target(ABC):
    """Seeds in a folder, odd files of them in another, and what reads those."""

    def __init__(self, seeds: Path, place: Path) -> None:
        self.place = place
        self.files = {path.name: path.read_bytes() for path in sorted(seeds.iterdir()) if path.is_file()}

    def case(self, dice: random.Random) -> Path:
        """Write an odd file; its path."""
        name = dice.choice([name for name in self.files if self.changeable(name)])
        path = self.place / name
        path.write_bytes(self.odd(name, self.files[name], dice))
        return path

    def changeable(self, name: str) -> bool:
        return True

    def odd(self, name: str, data: bytes, dice: random.Random) -> bytes:
        return mutated_json(json.loads(data), dice)

    @abstractmethod
    def read(self, path: Path) -> None: ...


class GGUF(Target):
    """The whole way of a file: looked at, and, if it passes, loaded and run by llama.cpp."""

    def __init__(self, seeds: Path, place: Path) -> None:
        from zephyra_converters.gguf_header import read_header

        super().__init__(seeds, place)
        self.base = seeds / "base.gguf"
        self.layout = {}
        for name, data in self.files.items():
            header = read_header(seeds / name)
            words = [*header.metadata, *header.tensors]
            marks = [0, *(at + len(word) for word in words if (at := data.find(word.encode())) >= 0)]
            self.layout[name] = min(tensor.offset for tensor in header.tensors.values()), marks

    def odd(self, name: str, data: bytes, dice: random.Random) -> bytes:
        header, marks = self.layout[name]
        return mutated_bytes(data, list(self.files.values()), dice, header=header, marks=marks)

    def read(self, path: Path) -> None:
        from zephyra_cli.backends.classifier import LlamaClassifier
        from zephyra_cli.backends.llama import LlamaBackend
        from zephyra_cli.detectors import Detector, Detectors
        from zephyra_fusion.types import SamplingParams

        if path.name.startswith("newcomers"):
            detector = Detector(name="x", shares={"a": 1.0}, logs={"a": 1.0}, bias=0.0, sharpness=1.0)
            Detectors(path, [detector]).odds(range(400), {"a": 0.5})
            return
        if path.name.startswith("router"):
            classifier = LlamaClassifier(path, threads=1)
            classifier.logits(list(range(40)))
            classifier.close()
            return
        adapter = path.name.startswith("adapter")
        backend = LlamaBackend(self.base if adapter else path, threads=1)
        try:
            if adapter:
                backend.add_adapter("x", path)
                backend.set_adapters({"x": 0.5})
            ids = backend.encode("the heart of <|end|> naïve \x00\U0001f600 \t\r\n x" * 3) or [0]
            ids = [*ids, *backend.encode("<|end|><0x41> ▁", special=True)][:200]
            for params in (
                SamplingParams(max_tokens=4),
                SamplingParams(max_tokens=4, temperature=1.0, repeat_penalty=1.3),
            ):
                for token in backend.generate(ids, params):
                    backend.token_bytes(token.id)
            for token_id in range(0, backend.vocab_size, 7):
                backend.token_bytes(token_id)
        finally:
            backend.close()


class Safetensors(Target):
    def odd(self, name: str, data: bytes, dice: random.Random) -> bytes:
        length = int.from_bytes(data[:8], "little")
        if dice.random() < 0.6:
            text = mutated_json(json.loads(data[8 : 8 + length]), dice)
            return len(text).to_bytes(8, "little") + text + data[8 + length :]
        return mutated_bytes(data, [data], dice, header=8 + length, marks=[0, 8, 40])

    def read(self, path: Path) -> None:
        from zephyra_converters.safetensors_file import read_safetensors

        for tensor in list(read_safetensors(path).values())[:4]:
            tensor.read()


class Manifest(Target):
    def read(self, path: Path) -> None:
        from zephyra_cli.pack import Pack
        from zephyra_fusion.types import Message

        pack = Pack.read(path.parent)
        if pack.chat is not None:
            pack.chat.render([Message("system", "s"), Message("user", "u")])
        if pack.router is not None:
            pack.router.decide([0.5] * len(pack.router.labels), odds={n.name: 2.0 for n in pack.newcomers})
        assert all(not Path(file).is_absolute() and ".." not in Path(file).parts for file in [*pack.used, *pack.files])
        for file in pack.used:
            with suppress(ZephyraError):  # nothing but the manifest is there
                pack.path(file)


class Checkpoint(Target):
    """tokenizer.json, tokenizer_config.json, config.json of one folder; whichever is not the case stays as it was."""

    def changeable(self, name: str) -> bool:
        return name.endswith(".json")

    def case(self, dice: random.Random) -> Path:
        for name, data in self.files.items():
            (self.place / name).write_bytes(data)
        return super().case(dice)

    def read(self, path: Path) -> None:
        from zephyra_converters.gguf_write import plan_gguf
        from zephyra_converters.hf import read_hf

        plan_gguf(read_hf(path.parent))


class Adapter(Checkpoint):
    """adapter_config.json beside its tensors."""

    def changeable(self, name: str) -> bool:
        return True

    def odd(self, name: str, data: bytes, dice: random.Random) -> bytes:
        if name.endswith(".json"):
            return mutated_json(json.loads(data), dice)
        return Safetensors.odd(self, name, data, dice)

    def read(self, path: Path) -> None:
        from zephyra_converters.peft import read_peft

        for pair in list(read_peft(path.parent).pairs.values())[:2]:
            pair.a.read()


class Examples(Target):
    """A user's prompts, labelled ones, and the features that a pack keeps of them."""

    def odd(self, name: str, data: bytes, dice: random.Random) -> bytes:
        if dice.random() < 0.5:
            return mutated_bytes(data, [data], dice, header=len(data), marks=[0])
        line = {"prompt": "find it", "domain": "shell", "tokens": [3, 7], "shares": [0.5, 0.25, 0.25]}
        return b"\n".join(mutated_json(line, dice) for _ in range(2))

    def read(self, path: Path) -> None:
        from zephyra_cli.examples import read_examples, read_prompts
        from zephyra_cli.router_features import read_features

        if path.suffix == ".gz":
            read_features(path, 3)
        else:
            (read_examples if path.suffix == ".jsonl" else read_prompts)(path)


class Template(Target):
    """The fence's own code in a fork, so that a case costs a fork and not a start of Python."""

    def __init__(self, seeds: Path, place: Path) -> None:
        from zephyra_cli import template

        super().__init__(seeds, place)
        template.SECONDS = 1
        template.subprocess = _Forked
        import jinja2.sandbox  # noqa: F401  once, before the forks

    def odd(self, name: str, data: bytes, dice: random.Random) -> bytes:
        return mutated_template(data.decode(), dice).encode("utf-8", "surrogatepass")

    def read(self, path: Path) -> None:
        from zephyra_cli.template import render
        from zephyra_fusion.types import Message

        text = path.read_bytes().decode("utf-8", "surrogatepass")
        messages = [Message("system", "be {{ 7 * 7 }}"), Message("user", "hi <|end|>")]
        segments = render(text, messages, {"bos_token": "<s>", "eos_token": "</s>"})
        assert [s.text for s in segments if not s.control] == ["be {{ 7 * 7 }}", "hi <|end|>"]
        assert sum(len(segment.text) for segment in segments) < 2**21


class _Forked:
    """What `template` uses of `subprocess`, without a new Python."""

    TimeoutExpired = subprocess.TimeoutExpired

    @staticmethod
    def run(command: list[str], *, input: bytes, timeout: float, **ignored: Any) -> Any:
        import io
        import tempfile

        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if not pid:
                os.dup2(out.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                sys.stdin = io.TextIOWrapper(io.BytesIO(input))
                sys.stdout, sys.argv = io.TextIOWrapper(os.fdopen(1, "wb")), ["-c", *command[4:]]
                status = 1
                try:
                    exec(command[3], {"__name__": "__main__"})
                    status = 0
                except SystemExit as leaving:
                    os.write(2, str(leaving.code).encode(errors="replace"))
                except MemoryError:
                    pass
                finally:
                    sys.stdout.flush()
                    os._exit(status)
            _, status = os.waitpid(pid, 0)
            out.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), out.read(), errors.read())


TARGETS: Mapping[str, Callable[[Path, Path], Target]] = {
    "gguf": GGUF,
    "safetensors": Safetensors,
    "manifest": Manifest,
    "checkpoint": Checkpoint,
    "adapter": Adapter,
    "examples": Examples,
    "template": Template,
}


def judged(target: Target, path: Path) -> str:
    size, before = path.stat().st_size, _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    began = time.process_time()
    try:
        target.read(path)
        found = "ok"
    except ZephyraError:
        found = "refused"
    except Exception as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
    took = time.process_time() - began
    if took > SECONDS:
        return f"took {took:.1f} s"
    if (more := _memory("VmHWM") - before) > 3 * size + SPARE:
        return f"took {more >> 20} MiB for {size} bytes"
    return found


def _memory(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(what + ":")[2].split()[0]) * 1024


def main() -> None:
    kind, seeds, place, start, stop = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.devnull, "w") as nowhere:  # llama.cpp's own words
        os.dup2(nowhere.fileno(), 2)
    target = TARGETS[kind](seeds, place)
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # die with the parent
    for number in range(start, stop):
        path = target.case(random.Random(f"{kind} {number}"))
        print(number, flush=True, end=" ")
        print(judged(target, path).replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
