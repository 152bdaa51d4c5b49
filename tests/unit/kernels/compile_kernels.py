"""Compiles every kernel for an NVIDIA GPU, which takes none, and prints its name; run by test_kernels.py."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nemo_xtoken.kernels import largest_source, leaf_source, pair_source, slot_source, source

#: Of each kernel the variants that runs use: values of its constants, and types of arguments that have several.
VARIANTS = {
    "softmax_statistics": [{"TEMPERATURE": 1.0}, {"TEMPERATURE": 2.5}],
    "softmax_probabilities": [{"TEMPERATURE": 1.0}, {"TEMPERATURE": 2.5}],
    "gather_columns": [{"CONSTANT": True}, {"CONSTANT": False}],
    "compare_columns": [
        {"DIRECTION": name, "MASKED": True, "SLOPE": True, "SMALLEST": 2.0**-102}
        for name in ("forward", "reverse", "js")
    ],
    "row_products": [{"BY_LOGARITHM": True}, {"BY_LOGARITHM": False}],
    "logit_gradient": [
        {"VALUES": True, "BY_LOGARITHM": False, "MORE": False, "TEMPERATURE": 1.0},
        {"VALUES": True, "BY_LOGARITHM": False, "MORE": True, "TEMPERATURE": 2.5},
        {"VALUES": False, "BY_LOGARITHM": False, "MORE": False, "TEMPERATURE": 1.0},
    ],
}
PAIR = {"SMALLEST": 2.0**-102, "TEMPERATURE": 1.0, "TABLE": True, "GATHERED": True}
GRADIENT = {"ENTRIES": 4, "INNER": True, "SOFTCAP": False, "MORE": False, "LARGEST": False}
VARIANTS |= {
    "row_statistics": [{"TEMPERATURE": 1.0}, {"TEMPERATURE": 2.5}],
    "spread_entries": [{"TEMPERATURE": 1.0, "ENTRIES": 16, "BLOCK": 32}],
    "compare_pairs": [
        *({**PAIR, "DIRECTION": name} for name in ("forward", "reverse", "js")),
        {**PAIR, "DIRECTION": "forward", "TABLE": False, "GATHERED": False},
    ],
    "chunk_terms": [
        {"SMALLEST": 2.0**-102, "NEAREST": -(2.0**-24), "BLOCK": 32, **variant}
        for variant in (
            {"DIRECTION": "forward", "CHAIN": True, "REST": "compared", "COLUMNS": True, "BESIDE": False},
            {"DIRECTION": "js", "CHAIN": False, "REST": "conditioned", "COLUMNS": True, "BESIDE": True},
            {"DIRECTION": "none", "CHAIN": True, "REST": "open", "COLUMNS": False, "BESIDE": True},
        )
    ],
    "pair_gradient": [
        {**PAIR, **GRADIENT, "TEACHER": True, "DIRECTION": "forward", "dz": "*bf16"},
        {**PAIR, **GRADIENT, "TEACHER": True, "DIRECTION": "js", "SOFTCAP": True, "MORE": True, "GATHERED": False},
        {**PAIR, **GRADIENT, "TEACHER": False, "DIRECTION": "", "TABLE": False, "GATHERED": False, "ENTRIES": 0},
        {**PAIR, **GRADIENT, "TEACHER": True, "DIRECTION": "none", "TABLE": False, "GATHERED": False, "LARGEST": True},
    ],
}
SORTED = {"TEMPERATURE": 1.0, "BLOCK": 1024}
CHOSEN = {"TEMPERATURE": 1.0, "BLOCK": 64, "SMALLEST": 2.0**-102, "LEAST": 2.0**-149, "FAR": 2.0**-103}
VARIANTS |= {
    "largest_of_rows": [
        {"TEMPERATURE": 1.0, "SEARCH": True, "BITS": 32},
        {"TEMPERATURE": 2.5, "SEARCH": False, "BITS": 32},
    ],
    "sorted_distance": [
        {**SORTED, "BEYOND": True, "TAILS": True},
        {**SORTED, "BEYOND": False, "TAILS": False},
    ],
    "partners_of_largest": [CHOSEN, {**CHOSEN, "tokens": "*i64"}],
    "restricted_reverse": [{**CHOSEN, "ORDERED": ordered} for ordered in (False, True)],
}
LEAVES = {"SMALLEST": 2.0**-102, "LEAST": 2.0**-25, "TEMPERATURE": 1.0, "BLOCK": 128}
VARIANTS |= {name: [LEAVES] for name in leaf_source.__all__}
VARIANTS["leaf_chunks"] = [{**LEAVES, "GRADIENT": True}, {**LEAVES, "GRADIENT": False}]
SLOTS = {"SMALLEST": 2.0**-102, "LEAST": 2.0**-25, "TINY": 2.0**-1022, "BETA": 0.7, "REST": "compared", "BLOCK": 128}
VARIANTS |= {
    name: [{**SLOTS, "GRADIENT": True}, {**SLOTS, "GRADIENT": False, "REST": "conditioned"}]
    for name in slot_source.__all__
}
KERNELS = {
    name: getattr(module, name)
    for module in (source, pair_source, leaf_source, largest_source, slot_source)
    for name in module.__all__
}
KERNELS.pop("divergence_terms")  # called by kernels
KERNELS.pop("at_least")
KERNELS.pop("is_largest")
TYPES = {"mask": "*u8", "slots": "*i32", "source": "*i64", "labels": "*i64"}
TYPES |= dict.fromkeys(("kinds",), "*u8") | dict.fromkeys(("slots_s", "slots_t", "row_slots"), "*i32")
LONG = ("first", "first_s", "first_t", "tokens_s", "tokens_t", "chunk", "columns", "starts", "row_starts", "by_row")
TYPES |= dict.fromkeys(LONG, "*i64")
LONG = ("entry_row", "entry_column", "entry_slot", "entry_start", "path_slot", "path_first", "path_chunk", "row_path")
LONG += ("group_start", "group_stop", "path_pairs", "path_pairs_stop", "slot_path", "slot_class", "pair_whole")
LONG += ("pair_leaf", "pair_from", "pair_to", "whole_pairs", "whole_pairs_stop", "leaf_pairs", "leaf_start")
LONG += ("leaf_level", "chunk_leaves", "chunk_levels", "chunk_path", "chunk_of")
LONG += ("order", "partner")
LONG += ("begin_s", "middle_s", "begin_t", "middle_t", "counts", "student", "teacher", "cells", "into", "out")
LONG += ("chain", "length", "over", "label", "head", "head_mass", "token_mass")
TYPES |= dict.fromkeys(LONG, "*i64") | {"before": "*fp64"}
TYPES |= dict.fromkeys(("last", "columns", "tokens"), "*i32")  # of the largest
#: Where a name means another type than elsewhere.
TYPES_OF = {
    "spread_entries": {"columns": "*i64", "starts": "*i64"},
    "largest_of_rows": {"starts": "*i32"},
    "pair_gradient": {"starts": "*i32"},
    "partners_of_largest": {"out": "*fp32"},
    "gather_columns": {"out": "*fp32"},
}
CAPABILITY = 80  # the oldest in use; 90 compiles as well
NUMBERS = ("rows", "x_width", "shared", "width", "valid", "start", "chunks", "width_s", "width_t")
NUMBERS += ("distinct", "distinct_s", "distinct_t", "student_slots", "all_slots", "leaves")
NUMBERS += ("comparisons", "keep", "room", "blocks", "span", "count", "own", "chosen")

for name, kernel in KERNELS.items():
    for variant in VARIANTS[name]:
        given = {argument: value for argument, value in variant.items() if argument in kernel.arg_names}
        constants = {argument: value for argument, value in given.items() if argument.isupper()}
        types = {
            **TYPES,
            **TYPES_OF.get(name, {}),
            **{argument: value for argument, value in given.items() if not argument.isupper()},
        }
        signature = {
            argument: "constexpr"
            if argument.isupper()
            else "i32"
            if argument in NUMBERS
            else types.get(argument, "*fp32")
            for argument in kernel.arg_names
        }
        made = ASTSource(kernel, signature, constexprs={"BLOCK": 4096, **constants})
        compiled = triton.compile(made, target=GPUTarget("cuda", CAPABILITY, 32), options={"num_warps": 8})
        assert compiled.asm["cubin"]
        print(name)
