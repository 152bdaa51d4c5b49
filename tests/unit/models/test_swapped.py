"""Students that are made for a swap of tokenizers: once, in the cache, and nothing else stays there."""

import os
import signal

from tokenizer_zoo import write_folder
from toy_models import write_model

from nemo_xtoken.plugin import swapping


def test_a_killed_process_leaves_no_model_behind(tmp_path, monkeypatch):
    """A pruned model is as large as the student."""
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "cache"))
    model = str(write_model("llama", tmp_path / "model", num_hidden_layers=2))
    tokenizer = str(write_folder("qwen", tmp_path / "tokenizer"))
    if not (child := os.fork()):
        try:
            swapping.transplant = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            swapping.transplanted(model, tokenizer, "1")
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    [folder] = (tmp_path / "cache" / "swap").iterdir()
    assert [path for path in folder.glob(".pruned*") if (path / "config.json").is_file()]
    made = swapping.transplanted(model, tokenizer, "1")
    assert made.folder == folder
    assert not [*folder.glob(".pruned*")]
    assert (made.model / "config.json").is_file()
