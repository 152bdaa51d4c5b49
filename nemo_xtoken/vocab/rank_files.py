"""What published tiktoken rank files do not say themselves: the splitting pattern and the special tokens."""

__all__ = ["FALLBACK_PATTERN", "KNOWN_RANK_FILES"]

_GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CL100K, _QWEN = _WORDS % "{1,3}", _WORDS % ""
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_LLAMA3_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


def _llama3() -> dict[int, str]:
    """256 special tokens from 128000 on; those without a name are numbered."""
    out: dict[int, str] = {}
    reserved = 0
    for i in range(256):
        if i in _LLAMA3_NAMED:
            out[128000 + i] = _LLAMA3_NAMED[i]
        else:
            out[128000 + i] = f"<|reserved_special_token_{reserved}|>"
            reserved += 1
    return out


FALLBACK_PATTERN = _CL100K
#: number of ranks -> (pattern, special tokens)
KNOWN_RANK_FILES: dict[int, tuple[str, dict[int, str]]] = {
    50256: (_GPT2, {50256: "<|endoftext|>"}),
    100256: (
        _CL100K,
        {
            100257: "<|endoftext|>",
            100258: "<|fim_prefix|>",
            100259: "<|fim_middle|>",
            100260: "<|fim_suffix|>",
            100276: "<|endofprompt|>",
        },
    ),
    128000: (_CL100K, _llama3()),
    151643: (_QWEN, {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"}),
    199998: (_O200K, {199999: "<|endoftext|>", 200018: "<|endofprompt|>"}),
}
