"""The models: students made by the product's commands, what a teacher says about a text, stored, and AdamW in fp32."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.weights.configuration import readable_folder
from nemo_xtoken.weights.folder import ModelFolder
from nemo_xtoken.weights.pruning import prune
from nemo_xtoken.weights.transplant import transplant

from .plan import Arm, Setting

__all__ = ["Stored", "Trainer", "freeze_all_but_embeddings", "load", "precision", "states_of", "student_folder"]


def student_folder(setting: Setting, arm: Arm, assets: Path, made: Path) -> Path:
    """The untrained student, in Hugging Face's format; first fewer layers, then the other tokenizer.

    Args:
        made: where models are made, once.
    """
    folder = assets / (setting.teacher if arm.original else setting.student)
    if arm.original:
        return folder
    if setting.layers is not None:
        pruned = made / f"{folder.name}-{setting.layers}"
        if not pruned.exists():
            prune(folder, setting.layers, pruned)
        folder = pruned
    if setting.tokenizer is not None and not arm.same:
        given = made / f"{folder.name}-{Path(setting.tokenizer).name}"
        if not given.exists():
            transplant(folder, assets / setting.tokenizer, given)
        folder = given
    return folder


def precision(device: str) -> torch.dtype:
    """bfloat16 where the device multiplies in it, on a CPU by AMX or AVX-512; else it is slower than float32 there."""
    fast = device.startswith("cuda") or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def load(folder: Path, device: str) -> Any:
    """The model, in the device's `precision`."""
    from transformers import AutoModelForCausalLM

    with readable_folder(ModelFolder(folder)) as path:
        return AutoModelForCausalLM.from_pretrained(path, dtype=precision(device)).to(device)


def states_of(model: Any, tokens: Tensor) -> Tensor:
    """``[b, T, H]``, the last hidden states, after the final norm."""
    states: Tensor = model.get_decoder()(tokens, use_cache=False).last_hidden_state
    return states


def freeze_all_but_embeddings(model: Any) -> None:
    """Only the embeddings are trained from here on, and the output layer where it is not tied to them."""
    trained = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


class Stored:
    """A teacher's hidden states of texts: each text is read once, whatever is trained on it.

    Args:
        folder: a file for each text, in bfloat16.
        model: loads the teacher, where a text is new.
        dtype: of what is given out.
    """

    def __init__(self, folder: Path, model: Callable[[], Any], dtype: torch.dtype) -> None:
        self.folder, self._load, self.dtype = folder, model, dtype
        self._model: Any = None
        self.read = 0

    def states(self, texts: Sequence[str], tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """``[b, T, H]``; what lies behind a text's end is 0.

        Args:
            tokens: ``[b, T]``, the teacher's.
        """
        rows = [self._row(text, row[:n]) for text, row, n in zip(texts, tokens, lengths, strict=True)]
        out = rows[0].new_zeros((*tokens.shape, rows[0].shape[-1]))
        for place, row in zip(out, rows, strict=True):
            place[: len(row)] = row
        return out.to(tokens.device)

    def _row(self, text: str, tokens: Tensor) -> Tensor:
        file = self.folder / f"{digest_of(text, str(tokens.tolist()))[:24]}.safetensors"
        if not file.is_file():
            if self._model is None:
                self._model = self._load()
            with torch.inference_mode():
                states = states_of(self._model, tokens[None])[0].bfloat16().cpu()
            with atomic_path(file) as temporary:
                save_file({"states": states.contiguous()}, temporary)
            self.read += 1
        return load_file(file)["states"].to(self.dtype)


class Trainer:
    """AdamW on fp32 copies of those of a model's weights that are trained.

    Args:
        model: its weights follow the copies; those in float32 are the copies.
        rate: the learning rate at its peak: a tenth of the steps up to it, then a cosine down to a tenth of it.
    """

    def __init__(self, model: Any, rate: float, steps: int) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.copies = {
            name: p if p.dtype == torch.float32 else p.detach().float() for name, p in self.parameters.items()
        }
        for copy in self.copies.values():
            copy.requires_grad_()
        fused = {"fused": True}
        self.optimizer = torch.optim.AdamW(self.copies.values(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, **fused)
        self.rate, self.steps = rate, steps

    def step(self, number: int) -> float:
        """Takes the gradients, step ``number`` from 0 on; their norm before it is held to 1."""
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None
            if parameter is not self.copies[name]:
                self.copies[name].grad, parameter.grad = parameter.grad.float(), None
        norm = torch.nn.utils.clip_grad_norm_(self.copies.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * schedule(number, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._follow()
        return float(norm)

    def _follow(self) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if parameter is not self.copies[name]:
                    parameter.copy_(self.copies[name])

    def save(self, file: Path) -> None:
        """Weights and optimizer."""
        tensors = {}
        for name, copy in self.copies.items():
            state = self.optimizer.state[copy]
            tensors |= {f"{name} {key}": state[key].detach() for key in ("exp_avg", "exp_avg_sq", "step")}
            tensors[f"{name} weight"] = copy.detach()
        with atomic_path(file) as temporary:
            save_file(tensors, temporary)

    def restore(self, file: Path) -> None:
        """What `save` has written."""
        tensors = load_file(file)
        with torch.no_grad():
            for name, copy in self.copies.items():
                copy.copy_(tensors[f"{name} weight"])
                state = {key: tensors[f"{name} {key}"] for key in ("exp_avg", "exp_avg_sq", "step")}
                self.optimizer.state[copy] = {
                    key: value if key == "step" and copy.device.type == "cpu" else value.to(copy.device)
                    for key, value in state.items()
                }
        self._follow()


def schedule(step: int, steps: int) -> float:
    """The learning rate over its peak."""
    import math

    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
