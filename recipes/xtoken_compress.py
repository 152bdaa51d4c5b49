"""Fewer layers and another tokenizer: a smaller student made of the model that teaches it.

    nemo llm distill --recipe xtoken_compress \\
        model=models/smollm2 layers=12 tokenizer=models/llama3 data.text.paths='["texts/*.jsonl"]'

``model`` and ``tokenizer`` are folders in Hugging Face's format or hub names; nothing has to be imported before.
``layers`` says which layers stay, their width as it is: so many, evenly spread (``12``), these (``0,1,5-9``) or every
n-th (``::2``, the default), as ``xtoken prune`` has it.  One command, resumable by itself:

1. the model loses its other layers,
2. what is left gets the tokenizer: a token that both have keeps its embedding, any other gets the mean of its pieces',
3. original and student become NeMo checkpoints (1 to 3 once: they are cached),
4. the student learns from text and from the original by prefix-exact P-KL,
5. the result goes to ``runs/xtoken_compress/student`` in Hugging Face's format, the weights in the original's type,
6. a table compares bits per byte of held-out text: the original, the student before and after.

It is the recipe xtoken_swap with layers left out first, and takes the same settings:

    .. ce_only=true                        also train it on text alone, and compare
    .. teacher.path=nemo/larger            learn from another NeMo checkpoint (`xtoken import`), not from the original
    .. trainer.max_steps=20000 optim.config.lr=3e-4

Settings, all ours: a model that lost more than half of its layers has to learn again how the rest fit together, so that
it takes a larger learning rate than a swap and more text: 1e-3 suits models below a billion parameters; 10000 steps of
64 samples of 1024 tokens are 650 million tokens.  What real students gain by it: docs/learning.md.
"""

import nemo_run as run

from nemo_xtoken.recipes.xtoken_swap import xtoken_swap

__all__ = ["xtoken_compress"]


def xtoken_compress() -> run.Partial:
    """The recipe; ``model``, ``tokenizer`` and ``data.text.paths`` are the user's, everything can be overridden."""
    recipe = xtoken_swap()
    recipe.layers = "::2"
    recipe.trainer.max_steps = 10_000
    recipe.trainer.val_check_interval = 500
    recipe.optim.config.lr = 1e-3
    recipe.optim.lr_scheduler.min_lr = 1e-4
    recipe.log.name = "xtoken_compress"
    recipe.log.ckpt.every_n_train_steps = 500
    return recipe
