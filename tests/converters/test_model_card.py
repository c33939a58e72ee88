"""What a folder says beside the weights reaches the file: license, sampling, templates; what is malformed is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zephyra_converters.convert import Options, convert
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_read import text_metadata
from zephyra_converters.hf import read_hf, write_hf
from zephyra_converters.model_card import card_metadata, sampling_metadata

CARD = """---
license: apache-2.0
language: no
tags: [chat]
pipeline_tag: text-generation
base_model: somebody/some-model
datasets:
- https://example.org/texts
---
# A model
"""
NAMED = [{"name": "default", "template": "plain"}, {"name": "tool-use", "template": "tools"}]


@pytest.fixture
def folder(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    shutil.copytree(checkpoint_folder("qwen3"), tmp_path / "model")
    return tmp_path / "model"


def put_template(folder: Path, template: Any) -> None:
    path = folder / "tokenizer_config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}
    path.write_text(json.dumps(config | ({} if template is None else {"chat_template": template})))


def test_what_the_folder_says_stands_in_the_file(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text(CARD)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 1, "top_k": 20, "top_p": 0.5}))
    put_template(folder, NAMED)
    report = convert(folder, tmp_path / "a.gguf", Options(quantization="F32", verify=False))
    assert report.parts[0].license == "apache-2.0"
    header = read_header(tmp_path / "a.gguf")
    metadata = text_metadata(header)
    expected = {
        "general.license": "apache-2.0",
        "general.languages": ["no"],
        "general.tags": ["chat", "text-generation"],
        "general.base_model.count": 1,
        "general.base_model.0.name": "some-model",
        "general.base_model.0.organization": "somebody",
        "general.base_model.0.repo_url": "https://huggingface.co/somebody/some-model",
        "general.dataset.count": 1,
        "general.dataset.0.repo_url": "https://example.org/texts",
        "general.sampling.temp": 1.0,
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.5,
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.chat_templates": ["tool_use"],
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert header.types["general.sampling.top_k"] == 5  # INT32, as gguf-py writes it: -1 is a value, too
    convert(tmp_path / "a.gguf", tmp_path / "back", Options(to="hf"))
    back = read_hf(tmp_path / "back").tokenizer
    assert back is not None and (back.chat_template, back.named_templates) == ("plain", {"tool_use": "tools"})


def test_templates_are_found_where_transformers_puts_them(folder: Path, tmp_path: Path) -> None:
    def found() -> tuple[str | None, dict[str, str]]:
        tokenizer = read_hf(folder).tokenizer
        assert tokenizer is not None
        return tokenizer.chat_template, dict(tokenizer.named_templates)

    put_template(folder, None)
    assert found() == (None, {})
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "older"}))
    assert found() == ("older", {})
    put_template(folder, NAMED)
    assert found() == ("plain", {"tool-use": "tools"})
    (tmp_path / "again").mkdir()
    write_hf(read_hf(folder), tmp_path / "again")
    again = read_hf(tmp_path / "again").tokenizer
    assert again is not None and dict(again.named_templates) == {"tool-use": "tools"}
    (folder / "chat_template.jinja").write_text("own")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")
    assert found() == ("own", {"rag": "rag"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# A model",
        "---\n",
        "---\nlicense: mit\n",
        "---\n- mit\n---\n",
        "---\n{\n---\n",
        "x\n---\nlicense: mit\n---\n",
        "---\nlicense: {a: b}\n---\n",
        "---\n" + "[" * 9000 + "\n---\n",
    ],
)
def test_a_card_that_says_nothing_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert card_metadata(tmp_path) == {}


def test_a_card_of_other_kinds(tmp_path: Path) -> None:
    assert card_metadata(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert card_metadata(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"---\r\nlicense: [mit, bsd]\r\ntags: {a: b}\r\n---\r\n")
    assert card_metadata(tmp_path) == {"general.license": "mit,bsd"}


def test_sampling_that_is_no_number_is_left_out() -> None:
    odd = {"temperature": "hot", "top_p": float("nan"), "top_k": -1, "min_p": True, "repetition_penalty": 10**40}
    assert sampling_metadata(odd) == {"general.sampling.top_k": -1}
