"""Files as NeMo-RL's projection tools write them, made from a W of ours."""

import numpy as np
import torch

__all__ = ["save", "with_scale_trick"]


def save(path, ids, weights, **more):
    """Their dict: indices int64, likelihoods bfloat16."""
    data = {"indices": torch.from_numpy(np.asarray(ids, np.int64))}
    data["likelihoods"] = torch.from_numpy(np.asarray(weights, np.float32)).to(torch.bfloat16)
    torch.save(data | more, path)
    return path


def with_scale_trick(matrix, path, sink, padding=0, k=6):
    """W as their builder leaves it: every slot names some token, the last slot of every row has a fixed weight.

    Args:
        sink: the teacher token that stands in the last slot.
        padding: empty rows that the model's layer has beyond the tokenizer.
    """
    rows, width = matrix.ids.shape
    ids, weights = np.zeros((rows + padding, k)), np.zeros((rows + padding, k))
    ids[:] = np.arange(k)[::-1]  # the k largest of a row that is mostly 0 are any tokens
    ids[:rows, :width] = np.where(matrix.ids >= 0, matrix.ids, ids[:rows, :width])
    weights[:rows, :width] = matrix.weights
    ids[:, -1], weights[:, -1] = sink, 0.2
    weights /= weights.sum(1, keepdims=True)
    return save(path, ids, weights, student_model_id="s", teacher_model_id="t", enable_scale_trick=True)
