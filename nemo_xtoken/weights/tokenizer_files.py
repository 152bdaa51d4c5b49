"""The files of a tokenizer beside a model, and the special ids that a model's configuration repeats from it."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.hub import hub_folder, is_hub_name
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["SPARE_IDS", "TOKENIZER_FILES", "copy_tokenizer", "link_tokenizer", "special_ids", "translated_ids"]

#: A tokenizer may have a few ids that its model has no row for (Gemma 3: one); with more it is another model's.
SPARE_IDS = 256
#: What a folder may hold of a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "tekken.json",
    "*.tiktoken",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
#: Entries of a generation configuration that hold ids in forms of their own.
NAMES_TOKENS = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_decoder_ids",
    "bad_words_ids",
    "force_words_ids",
    "sequence_bias",
)


def copy_tokenizer(source: str | Path, out: Path, vocabulary: Vocabulary, loadable: bool = True) -> None:
    """Copies a tokenizer's files into a model's folder, so that ``AutoTokenizer`` finds it there.

    A lone ``tokenizer.json`` gets a ``tokenizer_config.json`` that names its special tokens.

    Args:
        source: a folder, a file, or a hub name, whose files are in the cache.
        vocabulary: the same tokenizer, read.
        loadable: whether transformers must be able to load the files.

    Raises:
        InputError: files that transformers cannot load.
    """
    found = {path.name: path for path in _files_of(source)}
    whole = "tokenizer.json" in found or {"tokenizer.model", "tokenizer_config.json"} <= set(found)
    if not found or (loadable and not whole):
        raise InputError(
            f"the tokenizer {source} ({', '.join(found) or 'no file of a known name'})",
            "tokenizer.json, or tokenizer.model with tokenizer_config.json: transformers is to load the folder",
            "load it with transformers and save it: tokenizer.save_pretrained(folder)",
        )
    for name, path in found.items():
        shutil.copyfile(path, out / name)
    if "tokenizer.json" in found and "tokenizer_config.json" not in found:
        ids = {"bos": vocabulary.bos_id, "eos": vocabulary.eos_id, "pad": vocabulary.pad_id}
        texts = _texts_of(found["tokenizer.json"])
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {f"{role}_token": texts[i] for role, i in ids.items() if i is not None and i in texts}
        (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), "utf-8")


def link_tokenizer(source: Path, folder: Path) -> None:
    """Makes ``folder``, with links to the tokenizer's files in ``source`` and to the configurations beside them."""
    folder.mkdir()
    for pattern in (*TOKENIZER_FILES, "*.model", "config.json", "generation_config.json"):
        for path in source.glob(pattern):
            link = folder / path.name
            if path.is_file() and not link.exists():
                link.symlink_to(path.resolve())


def _files_of(source: str | Path) -> Iterable[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        if path.name not in TOKENIZER_FILES:
            return [path]
        path = path.parent
    elif not path.is_dir():
        if not is_hub_name(str(source)):
            raise InputError(f"{source} is not a file or folder", "a tokenizer's folder", "check the path")
        path = hub_folder(str(source), TOKENIZER_FILES, "tokenizer", "a tokenizer's folder, or its name on the hub")
    return [p for pattern in TOKENIZER_FILES for p in sorted(path.glob(pattern)) if p.is_file()]


def _texts_of(path: Path) -> dict[int, str]:
    spec = json.loads(path.read_text("utf-8-sig"))
    return {int(t["id"]): str(t["content"]) for t in spec.get("added_tokens", [])}


def special_ids(vocabulary: Vocabulary) -> dict[str, int | None]:
    """``bos_token_id``, ``eos_token_id``, ``pad_token_id`` for a model's configuration."""
    return {
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id,
    }


def translated_ids(content: dict[str, Any], old: Vocabulary, new: Vocabulary) -> dict[str, Any]:
    """A model's or a generation configuration with another tokenizer's ids.

    Ids are translated by role ("eos", "eot", "unk", ...), the end of a text also where it is a list.  What has no
    counterpart, or names tokens in other ways (suppressed, forced, biased, bad words), is left out.
    """

    def translate(ids: list[Any]) -> list[int]:
        roles = [old.roles[i] for i in ids if i in old.roles]
        return list(dict.fromkeys(new.id_of_role[role] for role in roles if role in new.id_of_role))

    out: dict[str, Any] = {}
    for key, value in content.items():
        if key in NAMES_TOKENS:
            continue
        if key.endswith("_token_id") and value is not None:
            ids = translate(value if isinstance(value, list) else [value])
            if not ids:
                continue
            value = ids if isinstance(value, list) else ids[0]
        out[key] = value
    for key, own in special_ids(new).items():
        if own is not None and isinstance(out.get(key), list):
            out[key] = list(dict.fromkeys([own, *out[key]]))
        else:
            out[key] = own
    return out
