"""`load_vocabulary`: from a folder, a file, a hub name or a tokenizer object to a `Vocabulary`."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.hub import hub_folder, is_hub_name
from nemo_xtoken.vocab.declared import Declared
from nemo_xtoken.vocab.encoders import library_reason
from nemo_xtoken.vocab.readers import read_sentencepiece, read_tekken, read_tiktoken, read_tokenizers_json
from nemo_xtoken.vocab.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers
    import transformers

__all__ = ["load_vocabulary"]

_FORMATS = "a folder or file with tokenizer.json, tokenizer.model (SentencePiece), *.tiktoken or tekken.json"
_HUB_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
]
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


def load_vocabulary(
    source: "str | os.PathLike[str] | tokenizers.Tokenizer | transformers.PreTrainedTokenizerBase",
) -> Vocabulary:
    """The `Vocabulary` of a tokenizer.

    Args:
        source: a folder with ``tokenizer.json`` (and ``tokenizer_config.json``, for the roles), ``tokenizer.model``, a
            ``*.tiktoken`` file or ``tekken.json``; one of these files; the name of a model on the Hugging Face hub (its
            tokenizer's files are taken from the cache or downloaded; no code of the repository is run); or a tokenizer
            object of ``tokenizers`` or ``transformers``.

    Raises:
        InputError: there is nothing at ``source``, it cannot be read, or its tokens do not stand for bytes.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        if os.path.exists(path):  # False also for what is no name, such as one of 300 characters
            return _guarded(str(source), lambda: _from_path(path, str(source)))
        return _from_hub(str(source))
    return _guarded(type(source).__name__, lambda: _from_object(source))


def _guarded(name: str, read: Callable[[], Vocabulary]) -> Vocabulary:
    """``read()``, with any error inside a tokenizer library turned into an `InputError`."""
    try:
        return read()
    except BaseException as e:
        raise InputError(
            f"the tokenizer {name} cannot be read: {library_reason(e)}", _FORMATS, "check the file, or copy it again"
        ) from e


def _from_path(path: Path, name: str) -> Vocabulary:
    if path.is_dir():
        file = _file_in(path, name)
        declared = _declared_in(path)
    else:
        file = path
        # A file by another name may lie beside a configuration that is not its own.
        own = path.name in ("tokenizer.json", "tokenizer.model", "tekken.json") or path.suffix == ".tiktoken"
        declared = _declared_in(path.parent) if own else Declared()
    data = file.read_bytes()
    if file.suffix == ".json":
        return _from_json(data, declared, name)
    if _RANK_LINE.match(data):
        return read_tiktoken(data, declared, name)
    if file.suffix == ".model" and data:
        return read_sentencepiece(data, declared, name)
    raise _unknown(name, "an empty file" if not data else f"a file that starts with {data[:16]!r}")


def _file_in(folder: Path, name: str) -> Path:
    for wanted in ("tokenizer.json", "tekken.json", "tokenizer.model", "*.model", "*.tiktoken"):
        found = sorted(folder.glob(wanted))
        if len(found) > 1:
            raise InputError(
                f"{len(found)} tokenizers in {name}: {', '.join(f.name for f in found[:4])}", "one", "name the file"
            )
        if found:
            return found[0]
    files = sorted(f.name for f in folder.iterdir())
    raise InputError(
        f"no tokenizer in the folder {name} ({', '.join(files[:6]) or 'empty'})",
        _FORMATS,
        "save the tokenizer there (`tokenizer.save_pretrained(folder)`), or name another folder",
    )


def _from_json(data: bytes, declared: Declared, name: str) -> Vocabulary:
    text = data.decode("utf-8-sig")
    if not text.lstrip().startswith("{"):
        raise _unknown(name, f"a file that starts with {data[:16]!r}")
    spec: dict[str, Any] = {}
    # Parsing a large tokenizer.json twice costs seconds: look whether it can be tekken first.
    if '"model"' not in text or '"token_bytes"' in text[:4096]:
        spec = json.loads(text)
        if "vocab" in spec and "config" in spec:
            return read_tekken(spec, declared, name)
        if "model" not in spec:
            raise _unknown(name, f"JSON with the keys {', '.join(sorted(spec)[:6]) or '(none)'}")
    return read_tokenizers_json(text, declared, name)


def _unknown(name: str, what: str) -> InputError:
    return InputError(f"{name}: {what}", _FORMATS, "name the tokenizer's folder or file")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    config = json.loads(path.read_text("utf-8-sig"))
    if not isinstance(config, dict):
        raise InputError(f"{path}: a {type(config).__name__}", "a JSON object", "copy the file again")
    return config


def _text_of(value: Any) -> str | None:
    """A token in a configuration is a string, or an object with its ``content``."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _declared_in(folder: Path) -> Declared:
    config = _read_config(folder / "tokenizer_config.json")
    extra = _read_config(folder / "special_tokens_map.json")
    texts = {}
    for role in ("bos", "eos", "unk", "pad"):
        text = _text_of(config.get(f"{role}_token")) or _text_of(extra.get(f"{role}_token"))
        if text:
            texts[role] = text
    added = {
        int(i): (str(t["content"]), bool(t.get("special"))) for i, t in config.get("added_tokens_decoder", {}).items()
    }
    strips = {
        int(i): (bool(t.get("lstrip")), bool(t.get("rstrip")))
        for i, t in config.get("added_tokens_decoder", {}).items()
    }
    marked = {*texts.values(), *filter(None, map(_text_of, extra.get("additional_special_tokens") or ()))}
    for text, i in _read_config(folder / "added_tokens.json").items():  # an older form of the same
        added.setdefault(int(i), (str(text), text in marked))
    add_bos = config.get("add_bos_token")
    template = _chat_template(folder, config)
    return Declared(texts, add_bos if isinstance(add_bos, bool) else None, added, strips, template)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """From a file of its own, else from the configuration; of several by name the one called ``default``."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text("utf-8")
    own = _read_config(folder / "chat_template.json")
    return _default_template(own.get("chat_template") or config.get("chat_template"))


def _default_template(value: Any) -> str | None:
    if isinstance(value, list):
        value = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) and value else None


def _from_hub(name: str) -> Vocabulary:
    expected = _FORMATS + ", or the name of a model on the Hugging Face hub"
    if not is_hub_name(name) or Path(name).suffix in (".json", ".model", ".tiktoken"):
        raise InputError(f"no file or folder {name}", expected, "check the path")
    folder = hub_folder(name, _HUB_FILES, "tokenizer", expected)
    return _guarded(name, lambda: _from_path(folder, name))


def _from_object(source: Any) -> Vocabulary:
    kind = type(source)
    if kind.__module__.split(".")[0] == "tokenizers" and hasattr(source, "to_str"):
        return read_tokenizers_json(source.to_str(), Declared(), f"<{kind.__name__}>")
    name = str(getattr(source, "name_or_path", "") or f"<{kind.__name__}>")
    texts = {}
    for role in ("bos", "eos", "unk", "pad"):
        if text := getattr(source, f"{role}_token", None):
            texts[role] = str(text)
    add_bos = getattr(source, "add_bos_token", None)
    decoder = getattr(source, "added_tokens_decoder", None) or {}
    added = {int(i): (str(t.content), bool(t.special)) for i, t in decoder.items()}
    strips = {int(i): (bool(t.lstrip), bool(t.rstrip)) for i, t in decoder.items()}
    template = _default_template(getattr(source, "chat_template", None))
    declared = Declared(texts, add_bos if isinstance(add_bos, bool) else None, added, strips, template)
    if (backend := getattr(source, "backend_tokenizer", None)) is not None and hasattr(backend, "to_str"):
        return read_tokenizers_json(backend.to_str(), declared, name)
    if (sp := getattr(source, "sp_model", None)) is not None and hasattr(sp, "serialized_model_proto"):
        return read_sentencepiece(sp.serialized_model_proto(), declared, name)
    raise InputError(
        f"a tokenizer of type {kind.__module__}.{kind.__name__}",
        "one of `tokenizers`, or of `transformers` with a fast or SentencePiece backend",
        "give its folder instead",
    )
