"""Small tokenizers of every family, trained in the test process within a second or two.

``zoo()`` gives all of them as `Vocabulary`; ``write_folder(name, folder)`` puts one on disk as its kind is published.
They differ where real ones do: BOS or none, digits in threes or one by one, metaspace with its dummy space in front,
byte fallback, NFC, tiktoken ranks.
"""

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nemo_xtoken.vocab import Vocabulary, load_vocabulary
from nemo_xtoken.vocab.canonical import byte_level_bytes

__all__ = ["NAMES", "NORMALIZING", "TEXT", "write_folder", "zoo"]

_PROSE = """The quick brown fox jumps over the lazy dog. In 1987 she walked 42 miles; nobody had asked her to.
Distillation teaches a small model what a large model knows, even where the two cut a text at other places.
def area(width, height):\n\tif width < 0:\n\t\traise ValueError("width must not be negative")\n\treturn width * height
Der Fluß fließt schnell; l'été dernier, nous étions à la plage; el niño comió mañana una piña. Ångström, naïve, café.
机器学习是人工智能的一个分支。今天天气很好，我们去公园散步吧。你好，世界！模型的词表不同。
اللغة العربية جميلة جدا والنموذج الصغير يتعلم. हिन्दी में लिखा हुआ पाठ। Привет, мир! Как дела сегодня?
x = {"name": "value", "list": [1, 2, 3], "pi": 3.14159} # 🙂 🚀 👩‍🔬\n    for i in range(100):\n        print(i)
"""
#: What they are trained on, and a text for tests.
TEXT = _PROSE * 3 + "".join(f"{a} + {b} = {a + b}\n" for a in range(0, 40, 3) for b in range(0, 900, 97))

_THREES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ONES = _THREES.replace("{1,3}", "")
_BYTES = [f"<0x{b:02X}>" for b in range(256)]

#: Those whose decoded bytes may differ from the text's.
NORMALIZING = ("qwen_nfc", "sp_bpe", "sp_unigram", "sp_model")


def _byte_level(pattern: str, size: int) -> Tokenizer:
    from tokenizers import Regex

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False)
    )
    return tokenizer


def _special(tokenizer: Tokenizer, texts: list[str], bos: str | None = None) -> Tokenizer:
    tokenizer.add_special_tokens(texts)
    if bos:
        template = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=template)
    return tokenizer


def _llama() -> dict[str, str]:
    """Byte-level BPE, every numeral of up to three digits a token, BOS in front: like Llama-3."""
    spec = json.loads(_byte_level(_THREES, 900).to_str())
    vocab = spec["model"]["vocab"]
    for n in [*(f"{i}" for i in range(1000)), *(f"{i:02}" for i in range(10)), *(f"{i:03}" for i in range(100))]:
        vocab.setdefault(n, len(vocab))
    spec["model"]["ignore_merges"] = True  # a whole numeral is looked up first
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    texts = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>", "<|start_header_id|>"]
    texts += ["<|end_header_id|>", "<|python_tag|>"]
    _special(tokenizer, texts, bos="<|begin_of_text|>")
    config = {"bos_token": texts[0], "eos_token": texts[1], "pad_token": texts[2]}
    return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(config)}


def _qwen(nfc: bool) -> dict[str, str]:
    """Byte-level BPE, digits one by one, no BOS, chat markers: like Qwen."""
    tokenizer = _byte_level(_ONES, 1100)
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    _special(tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>"])  # not special: text
    config = {"eos_token": {"content": "<|im_end|>", "special": True}, "pad_token": "<|endoftext|>"}
    return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(config)}


def _sp_bpe() -> dict[str, str]:
    """SentencePiece-style BPE as Llama-2's and Mistral's tokenizer.json have it: dummy space, byte fallback."""
    trained = Tokenizer(models.BPE())
    space = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.normalizer = space
    words = TEXT.replace("\n", " ").split(" ")  # no pieces across words, but none without a space in front either
    trained.train_from_iterator(words, trainers.BpeTrainer(vocab_size=700, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *_BYTES]
    names += [t for t, _ in sorted(model["vocab"].items(), key=lambda p: p[1]) if t not in names]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(names)},
            merges=[tuple(m) for m in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = space
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _special(tokenizer, ["<unk>", "<s>", "</s>"], bos="<s>")
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(config)}


def _sp_unigram() -> dict[str, str]:
    """Unigram with Metaspace, its special tokens among its pieces, without a configuration beside it."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(
        TEXT.split("\n"), trainers.UnigramTrainer(vocab_size=600, unk_token="<unk>", show_progress=False)
    )
    pieces = [(t, s) for t, s in json.loads(trained.to_str())["model"]["vocab"] if t != "<unk>"]
    vocab = [("<pad>", 0.0), ("<eos>", 0.0), ("<bos>", 0.0), ("<unk>", 0.0), *((t, -20.0) for t in _BYTES), *pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    _special(tokenizer, ["<pad>", "<eos>", "<bos>", "<unk>"], bos="<bos>")
    return {"tokenizer.json": tokenizer.to_str()}


def _sp_model() -> dict[str, Any]:
    """A ``.model`` of the sentencepiece package."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")),
        model_writer=out,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return {"tokenizer.model": out.getvalue()}


def _tiktoken() -> dict[str, str]:
    """tiktoken ranks: the bytes, then what each merge makes."""
    model = json.loads(_byte_level(_THREES, 1000).to_str())["model"]
    made = [byte_level_bytes(a) + byte_level_bytes(b) for a, b in model["merges"]]
    ranks = [*(bytes([b]) for b in range(256)), *dict.fromkeys(made)]
    lines = [f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(ranks)]
    added = {str(len(ranks) + 5): {"content": "<|endoftext|>", "special": True}}  # ids with a gap, as Phi-4-mini's
    config = {"eos_token": "<|endoftext|>", "added_tokens_decoder": added}
    return {"zoo.tiktoken": "".join(lines), "tokenizer_config.json": json.dumps(config)}


_MAKERS = {
    "llama": _llama,
    "qwen": functools.partial(_qwen, nfc=False),
    "qwen_nfc": functools.partial(_qwen, nfc=True),
    "sp_bpe": _sp_bpe,
    "sp_unigram": _sp_unigram,
    "sp_model": _sp_model,
    "tiktoken": _tiktoken,
}
NAMES = tuple(_MAKERS)


@functools.cache
def _files(name: str) -> dict[str, Any]:
    return _MAKERS[name]()


def write_folder(name: str, folder: str | Path) -> Path:
    """Writes tokenizer ``name`` into ``folder`` (made when missing) as its kind is published; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in _files(name).items():
        (folder / file).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


@functools.cache
def zoo() -> dict[str, Vocabulary]:
    """Every tokenizer by name; made once per process."""
    import tempfile

    out = {}
    with tempfile.TemporaryDirectory() as root:
        for name in NAMES:
            out[name] = load_vocabulary(write_folder(name, Path(root) / name))
    return out
