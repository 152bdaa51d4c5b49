"""A tokenizer as the rest of the package sees it: the bytes or the role of every id, and text -> ids."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import digest_of
from nemo_xtoken.vocab.canonical import visible
from nemo_xtoken.vocab.encoders import BytePairs, Encoder, encoded

__all__ = ["Vocabulary"]


class Vocabulary:
    """The tokens of one tokenizer in canonical form.  Immutable; can be pickled.

    Attributes:
        name: path or name, for error messages.
        digest: sha256 (hex) of the tokenizer's behaviour; equal digests encode alike.
        size: V, the largest id + 1.  Ids may have gaps, so this is not the number of tokens.
        token_bytes: bytes per id; None for role tokens and for gaps in the ids.
        roles: role per id that has one ("bos", "eos", "pad", "unk", "eot", ..., or "special:<text>").
        byte_length: int32 ``[V]``; 0 for role tokens and gaps.
        id_of_bytes: bytes -> id.  Of several tokens with equal bytes the lowest id wins, but a byte-fallback
            token (``<0x41>`` beside ``A``) never wins against another: tokenizers do not produce it there.
        id_of_role: role -> id; where several tokens have the role, the declared one, otherwise the lowest.
        byte_level: every single byte is some token.
        bos_id, eos_id, pad_id: None where the tokenizer has none.  One id may serve several of them.
        adds_bos: by default the tokenizer puts BOS in front of a text.
        special_texts: the spelling of special tokens by id, as chat templates write them.
        special_strips: (left, right) of special tokens that take the blanks beside them along; others have no entry.
        chat_template: Jinja source of the tokenizer's chat template; None where it has none.  Not in ``digest``.
    """

    name: str
    digest: str
    size: int
    token_bytes: list[bytes | None]
    roles: dict[int, str]
    byte_length: np.ndarray
    id_of_bytes: dict[bytes, int]
    id_of_role: dict[str, int]
    byte_level: bool
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    adds_bos: bool
    special_texts: dict[int, str]
    special_strips: dict[int, tuple[bool, bool]]
    chat_template: str | None

    def __init__(
        self,
        *,
        name: str,
        behaviour: str,
        token_bytes: Sequence[bytes | None],
        roles: dict[int, str],
        encoder: Encoder,
        bos_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        adds_bos: bool = False,
        fallback_ids: frozenset[int] = frozenset(),
        special_texts: Mapping[int, str] | None = None,
        special_strips: Mapping[int, tuple[bool, bool]] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """
        Args:
            behaviour: digest of everything that decides how text is encoded.
            fallback_ids: ids of byte-fallback tokens.
            The others are the attributes of the same name.
        """
        tokens = list(token_bytes)
        ids: dict[bytes, int] = {}
        for later in (False, True):  # byte-fallback tokens take what the others left
            for i, data in enumerate(tokens):
                if data and (i in fallback_ids) == later:
                    ids.setdefault(data, i)
            if not fallback_ids:
                break
        of_role: dict[str, int] = {}
        for declared in (bos_id, eos_id, pad_id, *sorted(roles)):
            if declared is not None and declared in roles:
                of_role.setdefault(roles[declared], declared)
        lengths = np.fromiter((len(b) if b else 0 for b in tokens), np.int32, len(tokens))
        lengths.setflags(write=False)
        parts = [behaviour, repr((bos_id, eos_id, pad_id, adds_bos)), repr(sorted(roles.items()))]
        self.__dict__.update(
            name=name,
            digest=digest_of(*parts),
            size=len(tokens),
            token_bytes=tokens,
            roles=dict(roles),
            byte_length=lengths,
            id_of_bytes=ids,
            id_of_role=of_role,
            byte_level=all(bytes([b]) in ids for b in range(256)),
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=pad_id,
            adds_bos=adds_bos,
            special_texts=dict(special_texts or {}),
            special_strips=dict(special_strips or {}),
            chat_template=chat_template,
            _encoder=encoder,
        )

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"a Vocabulary cannot be changed ({key})")

    def __repr__(self) -> str:
        return f"Vocabulary({self.name!r}, size={self.size}, digest={self.digest[:12]})"

    def encode(self, text: str) -> np.ndarray:
        """int32 ids ``[T]``: no special tokens are added, and none are recognised in the text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, in one call of the tokenizer.

        Raises:
            InputError: the tokenizer's library gives up on a text.
        """
        return encoded(self.__dict__["_encoder"], texts, self.name) if len(texts) else []

    def byte_pairs(self) -> BytePairs:
        """The merges of a byte-pair encoding.

        Raises:
            InputError: it is another kind of tokenizer, or its merges are not known.
        """
        found: BytePairs | None = self.__dict__["_encoder"].byte_pairs()
        if found is None:
            raise InputError(
                f"the tokenizer {self.name}, which is no byte-pair encoding, or a SentencePiece model",
                "a byte-pair encoding as tokenizer.json or as ranks",
                "convert it (`transformers` writes tokenizer.json), or leave boundary out",
            )
        return found

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The bytes of the tokens one after the other; role tokens give nothing."""
        tokens = self.token_bytes
        return b"".join([tokens[i] or b"" for i in (ids.tolist() if isinstance(ids, np.ndarray) else ids)])

    def shares_ids(self, other: "Vocabulary") -> bool:
        """Whether every id means the same in both, so that their distributions can be compared id by id.

        One may have more ids behind the other's, such as one more for padding: of roles that no text has and that
        neither text nor template of the other has either.
        """
        shorter, longer = (self, other) if self.size <= other.size else (other, self)
        if self.token_bytes[: shorter.size] != other.token_bytes[: shorter.size]:
            return False
        used = {*shorter.roles.values()} - {"pad"}
        more = range(shorter.size, longer.size)
        return all(
            longer.token_bytes[i] is None
            and longer.roles.get(i) not in used
            and i not in (longer.bos_id, longer.eos_id)
            for i in more
        )

    def display(self, id: int) -> str:
        """The token in readable form: ``' the'``, ``'<eos>'`` for a role, ``'\\xE4'`` for a fragment of a character."""
        if (role := self.roles.get(id)) is not None:
            return role.removeprefix("special:") if role.startswith("special:") else f"<{role}>"
        data = self.token_bytes[id]
        return f"<no token {id}>" if data is None else visible(data)
