"""One reader for each kind of tokenizer file: ``tokenizers`` JSON, SentencePiece, tiktoken ranks, tekken."""

import base64
import json
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import digest_of
from nemo_xtoken.vocab.canonical import ROLE_OF_TEXT, byte_level_bytes, byte_of_fallback, piece_bytes
from nemo_xtoken.vocab.declared import Declared
from nemo_xtoken.vocab.encoders import Encoder, RankEncoder, SentencePieceEncoder, TokenizersEncoder
from nemo_xtoken.vocab.rank_files import FALLBACK_PATTERN, KNOWN_RANK_FILES
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["read_sentencepiece", "read_tekken", "read_tiktoken", "read_tokenizers_json"]

logger = logging.getLogger(__name__)

# Private use: no text contains it, so a special token renamed with it can never be found in a text.
_UNREACHABLE = "\U000f0000"
# How a symbol of one's own is spelled in a SentencePiece model, which does not tell them from pieces of text.
_BRACKETED = re.compile(r"<.+>|\[.+\]")


def _finish(
    name: str,
    behaviour: str,
    encoder: Encoder,
    tokens: dict[int, bytes],
    special: dict[int, str],
    declared: Declared,
    adds_bos: bool | None,
    fallback: frozenset[int] = frozenset(),
    roles: dict[int, str] | None = None,
    strips: dict[int, tuple[bool, bool]] | None = None,
    ordinary: Mapping[str, int] | None = None,
) -> Vocabulary:
    """The `Vocabulary` of text tokens ``tokens`` and special tokens ``special`` (id -> text).

    ``adds_bos`` None means: if there is a BOS.  ``roles`` are further known roles, besides the declared ones and the
    table.  ``ordinary`` are tokens of the text among those that are declared for a role, by their spelling.
    """
    if not tokens:
        raise InputError(f"a tokenizer without tokens: {name}", "at least one token", "use another file")
    all_roles = {i: (roles or {}).get(i) or declared.role_of(text) for i, text in special.items()}
    size = max([*tokens, *special]) + 1
    table: list[bytes | None] = [None] * size
    for i, data in tokens.items():
        if i not in all_roles:
            table[i] = data
    by_text = {text: i for i, text in special.items()}
    ids: dict[str, int | None] = {}
    for role in ("bos", "eos", "pad", "unk"):
        lowest = min((i for i, r in all_roles.items() if r == role), default=None)
        ids[role] = declared.id_of(role, name, by_text, ordinary or {}, lowest)
    if declared.add_bos is not None:
        adds_bos = declared.add_bos
    return Vocabulary(
        name=name,
        behaviour=behaviour,
        token_bytes=table,
        roles=all_roles,
        encoder=encoder,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=ids["pad"],
        adds_bos=ids["bos"] is not None and (adds_bos is None or adds_bos),
        fallback_ids=fallback,
        special_texts=special,
        special_strips={i: s for i, s in (strips or {}).items() if i in special and any(s)},
        chat_template=declared.chat_template,
    )


def _types(part: Any) -> set[str]:
    """The ``type`` of every component below a part of a tokenizer's JSON."""
    if isinstance(part, list):
        return set().union(*map(_types, part)) if part else set()
    if not isinstance(part, dict):
        return set()
    nested = [v for k, v in part.items() if k in ("normalizers", "pretokenizers", "decoders")]
    return {str(part.get("type"))} | _types(nested)


def _own_pieces(model: dict[str, Any]) -> dict[str, int]:
    """The model's own pieces, without the added tokens."""
    vocab = model["vocab"]
    return {p[0]: i for i, p in enumerate(vocab)} if isinstance(vocab, list) else vocab


def _from_text(model: dict[str, Any], texts: Iterable[str]) -> set[str]:
    """Those of ``texts`` that the model makes out of text: single characters, what merges make, Unigram's words.

    The spellings in common use for special tokens are never among them: a converter may have written merges for these
    as for every other piece.
    """
    own = _own_pieces(model)
    asked = {t for t in texts if t in own and t not in ROLE_OF_TEXT and t != model.get("unk_token")}
    if isinstance(model["vocab"], list):  # Unigram: pieces that text never yields have no probability
        return {t for t in asked if model["vocab"][own[t]][1] < 0}
    found = {t for t in asked if len(t) == 1 or byte_of_fallback(t) is not None}
    if rest := asked - found:
        merges = (m.replace(" ", "", 1) if isinstance(m, str) else "".join(m) for m in model.get("merges") or ())
        found |= rest.intersection(merges)
    return found


def _make_safe(spec: dict[str, Any], declared: Declared) -> tuple[bool, dict[str, int]]:
    """Edits a tokenizer's JSON so that text never yields a special token, and yields what it did before any was added.

    ``encode_special_tokens`` covers tokens that are marked special; this covers those only declared to be, and models
    that find the special token's text among their own pieces (Unigram; BPE that looks a whole word up first).  A token
    of the model's own that text is made of, such as "!", stays one, whatever it is declared for.

    Returns:
        whether anything changed; the tokens of the text that are declared to be special, by spelling.
    """
    model, added = spec["model"], spec["added_tokens"]
    vocab, own = model["vocab"], _own_pieces(model)
    known = {t["content"]: t for t in added}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    new = {text: (i, special) for i, (text, special) in sorted(declared.added.items())}
    new |= {text: (own[text], True) for text in declared.texts.values() if text in own}
    new |= {text: (known[text]["id"], True) for text in declared.texts.values() if text in known}
    marked = {t for t, (i, special) in new.items() if special and own.get(t) == i}
    marked |= {t for t, token in known.items() if token["special"] and own.get(t) == token["id"]}
    ordinary = {text: own[text] for text in _from_text(model, marked)}
    changed = any(text in known for text in ordinary)
    added[:] = [token for token in added if token["content"] not in ordinary]
    for text, (i, special) in new.items():
        if text in ordinary:
            continue
        if text not in known:
            added.append({"id": i, "content": text, "special": special} | plain)
            changed = True
        elif special and not known[text]["special"]:
            known[text]["special"] = changed = True
    if model.get("dropout"):
        model["dropout"], changed = None, True
    if isinstance(vocab, list) or model.get("ignore_merges"):
        for token in added:
            text = token["content"]
            if token["special"] and text in own and text != model.get("unk_token"):
                if isinstance(vocab, list):
                    vocab[own[text]] = [_UNREACHABLE + text, vocab[own[text]][1]]
                else:
                    vocab[_UNREACHABLE + text] = vocab.pop(text)
                token["content"], changed = _UNREACHABLE + text, True
    return changed, ordinary


def read_tokenizers_json(text: str, declared: Declared, name: str) -> Vocabulary:
    """A Hugging Face ``tokenizers`` JSON (``tokenizer.json``)."""
    from tokenizers import Tokenizer

    spec = json.loads(text)
    model = spec["model"]
    spec.setdefault("added_tokens", [])
    pipeline = _types([spec.get("pre_tokenizer"), spec.get("decoder"), spec.get("normalizer")])
    byte_level = "ByteLevel" in pipeline
    fallback_on = bool(model.get("byte_fallback")) or "ByteFallback" in pipeline
    pieces = fallback_on or "Metaspace" in pipeline or "▁" in json.dumps(spec.get("decoder"), ensure_ascii=False)
    suffixes = model.get("end_of_word_suffix") or model.get("continuing_subword_prefix")
    if model.get("type") not in ("BPE", "Unigram") or suffixes or not (byte_level or pieces):
        raise InputError(
            f"{name}: a tokenizer with a {model.get('type')} model and {', '.join(sorted(pipeline)) or 'no pipeline'}",
            "byte-level BPE, SentencePiece-style BPE or Unigram, or tiktoken ranks",
            "use a model with such a tokenizer",
        )
    changed, ordinary = _make_safe(spec, declared)
    if changed:
        text = json.dumps(spec, ensure_ascii=False)
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    first = _first_special(tokenizer)
    encoder = TokenizersEncoder(text, tokenizer)  # from now on it adds no special tokens
    special: dict[int, str] = {}
    tokens: dict[int, bytes] = {}
    for token in spec["added_tokens"]:
        if tokenizer.token_to_id(token["content"]) != token["id"]:
            raise InputError(
                f"{name}: {token['content']!r} declared as id {token['id']}, which the tokenizer cannot give it",
                "configuration and tokenizer of one model",
                "take tokenizer.json and tokenizer_config.json from the same place",
            )
        if token["special"]:
            special[token["id"]] = token["content"].removeprefix(_UNREACHABLE)
    fallback: set[int] = set()
    literal = {t["id"] for t in spec["added_tokens"]}
    for token, i in tokenizer.get_vocab(with_added_tokens=True).items():
        if fallback_on and (data := byte_of_fallback(token)) is not None:
            tokens[i] = data
            fallback.add(i)
        elif pieces and not byte_level:
            tokens[i] = piece_bytes(token)
        else:
            tokens[i] = token.encode() if i in literal else byte_level_bytes(token)
    roles: dict[int, str] = {}
    unk = model.get("unk_id") if model["type"] == "Unigram" else tokenizer.token_to_id(model.get("unk_token") or "")
    if unk is not None and unk not in special and not byte_level:
        special[unk], roles[unk] = str(tokenizer.id_to_token(unk)), "unk"
    if first is not None and "bos" not in {declared.role_of(t) for t in special.values()} and first in special:
        roles.setdefault(first, "bos")  # however it is spelled: the tokenizer puts it in front of a text
    behaviour = _behaviour(spec)
    strips = {int(t["id"]): (bool(t.get("lstrip")), bool(t.get("rstrip"))) for t in spec["added_tokens"]}
    strips.update(declared.strips)
    return _finish(
        name,
        behaviour,
        encoder,
        tokens,
        special,
        declared,
        first is not None,
        frozenset(fallback),
        roles,
        strips,
        ordinary,
    )


def _pruned(part: Any) -> Any:
    """A part of a tokenizer's JSON without the fields whose absence means the same."""
    if isinstance(part, dict):
        return {k: _pruned(v) for k, v in part.items() if v is not None and v is not False and v != ""}
    return [_pruned(v) for v in part] if isinstance(part, list) else part


def _behaviour(spec: dict[str, Any]) -> str:
    """Digest of what decides the ids of a text, however the JSON is formatted and whichever version wrote it.

    (``Tokenizer.to_str`` would also work, but prints every gap in the ids.)
    """
    rest = {k: spec.get(k) for k in ("normalizer", "pre_tokenizer", "decoder", "added_tokens")}
    rest["model"] = {k: v for k, v in spec["model"].items() if k not in ("vocab", "merges")}
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, dict):
        vocab = sorted(vocab.items(), key=lambda item: item[1])
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in spec["model"].get("merges") or []]
    parts = (_pruned(rest), vocab, merges)
    return digest_of("tokenizers", *(json.dumps(p, sort_keys=True, ensure_ascii=False) for p in parts))


def _first_special(tokenizer: Any) -> int | None:
    """The special token that the tokenizer puts in front of a text by itself."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    return ids[0] if len(ids) > len(plain) and ids[1 : 1 + len(plain)] == plain else None


def read_sentencepiece(model: bytes, declared: Declared, name: str) -> Vocabulary:
    """A SentencePiece ``.model``."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as e:
        found = f"{name}, a SentencePiece model, and no sentencepiece package"
        raise InputError(found, "the package", "pip install sentencepiece") from e
    sp = SentencePieceProcessor(model_proto=model)
    tokens: dict[int, bytes] = {}
    special: dict[int, str] = {}
    roles: dict[int, str] = {}
    fallback: set[int] = set()
    ordinary: dict[str, int] = {}
    for i in range(sp.get_piece_size()):
        piece = sp.id_to_piece(i)
        wanted = piece in declared.texts.values()
        if wanted and not (sp.is_unknown(i) or sp.is_control(i) or _BRACKETED.fullmatch(piece)):
            ordinary[piece] = i
        if sp.is_unknown(i):
            special[i], roles[i] = piece, "unk"
        elif sp.is_control(i) or (wanted and piece not in ordinary):
            special[i] = piece
        elif sp.is_byte(i):
            tokens[i] = byte_of_fallback(piece) or b""
            fallback.add(i)
        else:
            tokens[i] = piece_bytes(piece)
    for role, i in (("eos", sp.eos_id()), ("bos", sp.bos_id()), ("pad", sp.pad_id())):
        if i >= 0 and i in special and role not in declared.texts:
            roles.setdefault(i, role)
    for i, (text, is_special) in declared.added.items():
        if i not in tokens and i not in special:
            if is_special:
                special[i] = text
            else:
                tokens[i] = text.encode()
    behaviour = digest_of("sentencepiece", model)
    return _finish(
        name,
        behaviour,
        SentencePieceEncoder(model),
        tokens,
        special,
        declared,
        None,
        frozenset(fallback),
        roles,
        ordinary=ordinary,
    )


def read_tiktoken(data: bytes, declared: Declared, name: str) -> Vocabulary:
    """A tiktoken rank file: lines of a base64 token and its rank.

    The file has neither the splitting pattern nor the special tokens: those of the published files are known by their
    number of ranks; for any other the special tokens come from the configuration and the pattern is cl100k's.
    """
    ranks: dict[bytes, int] = {}
    for line in data.splitlines():
        if line.strip():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    known = KNOWN_RANK_FILES.get(len(ranks))
    if known is None:
        logger.warning(
            "%s: %d ranks are not those of a published tiktoken file; text is split as by cl100k", name, len(ranks)
        )
    pattern, texts = known or (FALLBACK_PATTERN, {})
    tokens = {rank: token for token, rank in ranks.items()}
    added = {i: t for i, (t, is_special) in declared.added.items() if is_special and i not in tokens}
    special = added or dict(texts)
    tokens |= {i: t.encode() for i, (t, is_special) in declared.added.items() if not is_special and i not in tokens}
    behaviour = digest_of("ranks", data, pattern)
    ordinary = declared.among(ranks)
    return _finish(name, behaviour, RankEncoder(ranks, pattern), tokens, special, declared, None, ordinary=ordinary)


def read_tekken(spec: dict[str, Any], declared: Declared, name: str) -> Vocabulary:
    """Mistral's ``tekken.json``: special tokens first, then the ranks, cut at the vocabulary's size."""
    config = spec["config"]
    offset = int(config["default_num_special_tokens"])
    keep = int(config["default_vocab_size"]) - offset
    ranks = {base64.b64decode(v["token_bytes"]): int(v["rank"]) for v in spec["vocab"] if int(v["rank"]) < keep}
    special = {i: f"<SPECIAL_{i}>" for i in range(offset)}
    listed = spec.get("special_tokens") or [{"rank": i, "token_str": t} for i, t in enumerate(("<unk>", "<s>", "</s>"))]
    special |= {int(t["rank"]): str(t["token_str"]) for t in listed}
    tokens = {rank + offset: token for token, rank in ranks.items()}
    behaviour = digest_of("tekken", config["pattern"], str(offset), json.dumps(spec["vocab"][:keep], sort_keys=True))
    ordinary = {text: rank + offset for text, rank in declared.among(ranks).items()}
    encoder = RankEncoder(ranks, config["pattern"], offset)
    return _finish(name, behaviour, encoder, tokens, special, declared, None, ordinary=ordinary)
