"""A model with another tokenizer, distilled from itself until it speaks again.

    nemo llm distill --recipe xtoken_swap \\
        model=models/smollm2 tokenizer=models/llama3 data.text.paths='["texts/*.jsonl"]'

``model`` and ``tokenizer`` are folders in Hugging Face's format or hub names; nothing has to be imported before.  One
command, resumable by itself:

1. the model gets the tokenizer: a token that both have keeps its embedding, any other gets the mean of its pieces',
2. original and transplanted model become NeMo checkpoints (1 and 2 once: they are cached),
3. the transplanted model learns from text and from the original by prefix-exact P-KL,
4. the result goes to ``runs/xtoken_swap/student`` in Hugging Face's format, the weights in the original's type,
5. a table compares bits per byte of held-out text: the original, the model before and after.

    .. ce_only=true                        also train it on text alone, and compare
    .. teacher.path=nemo/larger            learn from another NeMo checkpoint (`xtoken import`), not from the original
    .. teacher.loss=p_kl objective.scale=3
    .. lora.rank=16                        train adapters, and of the weights those of the vocabulary alone, whole
    .. trainer.plugins.precision=32        by default bf16-mixed on a GPU and on a CPU with AMX or AVX-512 BF16
    .. trainer.devices=8 data.global_batch_size=256 optim.config.lr=1e-4

Prefix-exact P-KL, because a swap is its case: nearly every new token is made of pieces that the teacher says one after
the other.  P-KL compares the first of them, this loss all, and in both directions.  With ``teacher.loss=p_kl`` W is by
the rule "prefix", all weight on the first piece.

Settings, all ours: a learning rate of 3e-4 suits models below a billion parameters (1e-4 for a few billions); 2000
steps of 64 samples of 1024 tokens are 130 million tokens.  Memory on one GPU: 18 bytes a parameter in bf16-mixed and 16
in fp32, 2 or 4 more for the teacher, activations and a tile of logits.  Time, an estimate: SmolLM2-135M half an hour on
an H100.  On CPU cores it runs as well, with fewer and shorter samples: docs/models.md has such a run.

Data: text like that which the model is for; the original cannot teach what its text does not touch.
"""

import nemo_run as run

from nemo_xtoken.plugin.nemo2.swap import swap_tokenizer
from nemo_xtoken.projection.build import RULES, ProjectionRule
from nemo_xtoken.recipes.common import checkpoints, mixed_precision, plain_adamw
from nemo_xtoken.recipes.xtoken import xtoken

__all__ = ["mixed_precision", "xtoken_swap"]  # YAML of earlier versions names the first here


def xtoken_swap() -> run.Partial:
    """The recipe; ``model``, ``tokenizer`` and ``data.text.paths`` are the user's, everything can be overridden."""
    base = xtoken()
    base.teacher.rule = run.Config(ProjectionRule, **RULES["prefix"])
    base.data.text.student_length, base.data.text.teacher_length = 1024, 1280
    base.data.micro_batch_size = 4
    del base.data.loader_workers
    return run.Partial(
        swap_tokenizer,
        model=None,
        tokenizer=None,
        teacher=base.teacher,
        data=base.data,
        objective=base.objective,
        trainer=base.trainer,
        optim=plain_adamw(lr=3e-4, min_lr=3e-5, weight_decay=0.01),
        log=checkpoints("xtoken_swap", every=200),
        resume=base.resume,
        ce_only=False,
        measure_bytes=200_000,
    )
