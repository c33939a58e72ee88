from __future__ import annotations

from pathlib import Path

import pytest

from zephyra_cli import settings
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams


def configure(home: Path, text: str) -> None:
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(text)


def test_each_source_overrules_the_one_before(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load({}).model == "zephyra-nano"
    configure(home, 'model = "file"\ntemperature = 1\nseed = 1\nstats = true\n')
    monkeypatch.setenv("ZEPHYRA_MODEL", "environment")
    monkeypatch.setenv("ZEPHYRA_SEED", "2")
    chosen = settings.load({"model": "option", "threads": None})
    assert (chosen.model, chosen.seed, chosen.temperature, chosen.stats) == ("option", 2, 1.0, True)
    assert settings.load({}).model == "environment"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("temprature = 1", "unknown setting 'temprature'", "did you mean 'temperature'"),
        ('temperature = "hot"', "'temperature' .* is 'hot', must be a number", ""),
        ("seed = 1.5", "must be a whole number", ""),
        ("seed = true", "must be a whole number", ""),
        ("model = ", "no valid TOML", ""),
        ('backend = "lama"', "unknown backend 'lama'", "did you mean 'llama'"),
        ("context = 0", "context is 0, must be at least 1", ""),
    ],
)
def test_a_wrong_file_is_refused(home: Path, text: str, message: str, hint: str) -> None:
    configure(home, text)
    with pytest.raises(ZephyraError, match=message) as error:
        settings.load({})
    assert hint in (error.value.hint or "")


def test_a_file_that_is_no_text_is_refused(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ZephyraError, match="cannot read"):
        settings.load({})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ZEPHYRA_TEMPRATURE", "1", "unknown setting ZEPHYRA_TEMPRATURE"),
        ("ZEPHYRA_SEED", "one", "ZEPHYRA_SEED is 'one', must be a whole number"),
        ("ZEPHYRA_STATS", "perhaps", "must be true or false"),
        ("ZEPHYRA_PROMPT_CACHE", "", "prompt_cache is empty, must be a folder"),
    ],
)
def test_a_wrong_environment_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ZephyraError, match=message):
        settings.load({})


def test_the_models_own_sampling_stands_until_overruled() -> None:
    own = SamplingParams(temperature=0.7, top_k=5)
    params = settings.load({"top_k": 9, "seed": 3}).sampling(own)
    assert (params.temperature, params.top_k, params.seed) == (0.7, 9, 3)


def test_sampling_without_a_seed_takes_a_fresh_one_and_greedy_needs_none() -> None:
    sampled = {settings.load({"temperature": 1.0}).sampling(SamplingParams()).seed for _ in range(4)}
    assert len(sampled) > 1
    assert settings.load({}).sampling(SamplingParams(temperature=0.0)).seed == 0


def test_home_moves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert settings.home() == tmp_path / "home"
    monkeypatch.delenv("ZEPHYRA_HOME")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert settings.home() == Path("/data/zephyra")
