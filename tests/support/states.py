"""A teacher by itself that fills a folder with its states, as ``xtoken cache`` does, on the ranks of a test."""

from pathlib import Path

import torch

from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.plugin.standalone import cache_text
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.vocab.loading import load_vocabulary

__all__ = ["fill_states"]


def fill_states(
    job, folder, tp=1, pp=1, cp=1, micro=2, whole=False, dtype="fp32", format_name=None, part=(0, 1), **more
):
    """The report of `cache_states` for the data and the teacher of a job; ``service``: a folder, and no model."""
    from jobs import LENGTHS

    torch.set_num_threads(1)
    text = {
        "paths": [f"{job.root}/text/*.txt"],
        "student_length": LENGTHS[0],
        "teacher_length": LENGTHS[1],
        "held_out": 4,
        "progress": False,
        **job.text,
    }
    student = None if whole else load_vocabulary(f"{job.root}/student_tokenizer")
    plan = {"path": job.teacher, "dtype": dtype, "sizes": ParallelSizes(tp, pp, cp, 1, tp), "sequence_parallel": tp > 1}
    plan |= {name: str(value) for name, value in more.items()}
    return cache_text(plan, DataConfig(**text), student, (), Path(folder), format_name, micro, *part)
