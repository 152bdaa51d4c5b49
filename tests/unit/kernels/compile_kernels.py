"""Compiles every kernel for an NVIDIA GPU, which takes none, and prints its name; run by test_kernels.py."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nemo_xtoken.kernels import source

#: Of each kernel the variants that runs use: values of its constants.
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
TYPES = {"mask": "*u8", "slots": "*i32", "source": "*i64", "labels": "*i64"}
CAPABILITY = 80  # the oldest in use; 90 compiles as well
NUMBERS = ("rows", "x_width", "shared", "width", "valid")

for name in source.__all__:
    kernel = getattr(source, name)
    for constants in VARIANTS[name]:
        signature = {
            argument: "constexpr"
            if argument.isupper()
            else "i32"
            if argument in NUMBERS
            else TYPES.get(argument, "*fp32")
            for argument in kernel.arg_names
        }
        made = ASTSource(kernel, signature, constexprs={**constants, "BLOCK": 4096})
        compiled = triton.compile(made, target=GPUTarget("cuda", CAPABILITY, 32), options={"num_warps": 8})
        assert compiled.asm["cubin"]
        print(name)
