"""The adapters that are resident over one base, and the mixes of them that contexts run under."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_cli.backends.adapter_file import is_slow, write_fast
from zephyra_cli.backends.library import take_errors
from zephyra_cli.backends.mix import Mix, resident_mix
from zephyra_cli.backends.weights import LARGE, parameters, quantized
from zephyra_converters.gguf_check_lora import check_adapter
from zephyra_converters.gguf_header import GGUFHeader
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from zephyra_cli.backends.interleaved import Interleaver

_SUMS = 8  # blends that stay summed


class Adapters:
    """Loaded by name; blends of several are summed to one adapter each (see `blend`), the latest few kept."""

    def __init__(self, lib: Any, model: int, base: GGUFHeader, threads: int, *, sum_blends: bool) -> None:
        self._lib, self._model, self._base, self._sum_blends = lib, model, base, sum_blends
        self._interleaver: Interleaver | None = None
        # Looking for an adapter's tensors takes as long as some tokens do; and beside exact weights it is to be exact.
        if parameters(base) >= LARGE and quantized(base):
            from zephyra_cli.backends.interleaved import Interleaver

            self._interleaver = Interleaver.of(lib, model, threads)
        self._resident: dict[str, tuple[int, GGUFHeader]] = {}
        self._sums: OrderedDict[Mix, int] = OrderedDict()

    def add(self, name: str, path: Path) -> None:
        if name in self._resident:
            raise ZephyraError(f"there is already an adapter '{name}'")
        header = check_adapter(path, self._base)
        self._resident[name] = self._fast(header), header

    def mix(self, weights: Mapping[str, float]) -> Mix:
        """What identifies these weights. ZephyraError: an unknown name, a weight that is none."""
        return resident_mix(weights, self._resident)

    def loaded(self, mix: Mix, in_use: Collection[Mix] = ()) -> tuple[list[int], list[float]]:
        """llama.cpp's handles and scales for `mix`. The sums of mixes that are `in_use` are not freed meanwhile."""
        if len(mix) < 2 or not self._sum_blends:
            return [self._resident[name][0] for name, _ in mix], [weight for _, weight in mix]
        if mix not in self._sums:
            self._sums[mix] = self._sum(mix)
        self._sums.move_to_end(mix)
        for old in [old for old in self._sums if old not in in_use and old != mix][: max(0, len(self._sums) - _SUMS)]:
            self._free(self._sums.pop(old))
        return [self._sums[mix]], [1.0]

    def paths(self, mix: Mix) -> list[Path]:
        """The files of a mix, in its order."""
        return [self._resident[name][1].path for name, _ in mix]

    def clear(self) -> None:
        """The model is gone, and its adapters with it."""
        self._resident.clear()
        self._sums.clear()
        if self._interleaver:
            self._interleaver.clear()

    def _fast(self, header: GGUFHeader) -> int:
        """In the form that computes fastest, where there is a place to write it to."""
        try:
            if adapter := self._interleaved([(header, 1.0)]):
                return adapter
            if is_slow(header):
                return self._made(lambda path: write_fast(path, header, self._lib))
        except (OSError, MemoryError):
            pass  # as it lies in its file it computes the same, only slower
        return self._load(header.path)

    def _interleaved(self, parts: Sequence[tuple[GGUFHeader, float]]) -> int | None:
        """The sum of these, interleaved in memory; None: it does not pay, or cannot be done. OSError as `_made`."""
        if self._interleaver is None:
            return None
        from zephyra_cli.backends.blend import write_blend
        from zephyra_cli.backends.nibbles import Unfit, fits_nibbles

        if not all(fits_nibbles(header) for header, _ in parts):
            return None
        try:
            adapter = self._made(lambda path: write_blend(path, parts, nibbles=True))
        except Unfit:
            return None
        done = False
        try:
            done = self._interleaver.interleave(adapter)
        finally:
            if not done:  # it did not stay itself, or Ctrl-C came
                self._free(adapter)
        return adapter if done else None

    def _sum(self, mix: Mix) -> int:
        from zephyra_cli.backends.blend import write_blend

        parts = [(self._resident[name][1], weight) for name, weight in mix]
        try:
            with suppress(MemoryError):  # the plain form takes half as much
                if adapter := self._interleaved(parts):
                    return adapter
            return self._made(lambda path: write_blend(path, parts))
        except OSError as error:
            import tempfile

            raise ZephyraError(
                f"cannot write the sum of {len(mix)} adapters to '{tempfile.gettempdir()}': {error.strerror}",
                hint="TMPDIR chooses another folder",
            ) from None

    def _free(self, adapter: int) -> None:
        self._lib.llama_adapter_lora_free(adapter)
        if self._interleaver:
            self._interleaver.free(adapter)

    def _made(self, write: Callable[[Path], None]) -> int:
        """A file that lives as long as llama.cpp reads it."""
        import tempfile

        with tempfile.TemporaryDirectory(prefix="zephyra-", ignore_cleanup_errors=True) as folder:
            path = Path(folder, "adapter.gguf")
            write(path)
            return self._load(path)

    def _load(self, path: Path) -> int:
        adapter = self._lib.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not adapter:
            raise ZephyraError(f"llama.cpp cannot load the adapter {path}: {take_errors()}")
        return int(adapter)
