"""The version that an exported configuration names raises no doubt about its tokenizer, in any transformers here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from nemo_xtoken.weights.configuration import SUSPECTED, writer_version

FIVE = Path(sys.prefix) / "transformers5"
TYPES = ("llama", "qwen3", "gemma3_text", "gpt_oss", *SUSPECTED)
SCRIPT = """
import sys
from transformers import PreTrainedTokenizerFast
for folder in sys.argv[1:]:
    print("===", folder, file=sys.stderr)
    PreTrainedTokenizerFast.from_pretrained(folder)
"""


def warned(folders, path):
    """The folders at which transformers warns."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(path) if path else ""}
    line = [sys.executable, "-c", SCRIPT, *map(str, folders)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    _, *parts = done.stderr.split("=== ")
    return [Path(p.split("\n")[0]).name for p in parts if "incorrect regex" in p]


@pytest.mark.parametrize("path", [None, FIVE], ids=["installed", "five"])
def test_no_transformers_warns(path, tmp_path):
    pytest.importorskip("transformers")
    if path and not path.is_dir():
        pytest.skip("no transformers 5 beside the environment (make install)")
    large = Tokenizer(models.BPE({chr(0x20000 + i): i for i in range(100_001)}, []))  # smaller ones are not looked at
    large.pre_tokenizer = pre_tokenizers.ByteLevel()
    large.save(str(tmp_path / "tokenizer.json"))
    versions = {f"{kind} right": (kind, writer_version(kind)) for kind in TYPES} | {"wrong": ("mistral", "4.57.6")}
    for name, (kind, version) in versions.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        (folder / "config.json").write_text(json.dumps({"model_type": kind, "transformers_version": version}))
    assert warned([tmp_path / name for name in versions], path) == ["wrong"]
