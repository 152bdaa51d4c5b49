"""Whether a checkpoint has the weights that its configuration asks for, before anything is built or converted."""

from typing import Any

import torch

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.hf.state import HFState

__all__ = ["INVENTED", "check_complete"]

#: Ends of names that some checkpoints have beside the weights: computed from the configuration.
INVENTED = ("rotary_emb.inv_freq",)
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def check_complete(state: HFState, hf: Any) -> None:
    """Compares the names and shapes in the files with those of transformers' model of this configuration.

    Args:
        hf: transformers' configuration of the language model; its numbers are sound.

    Raises:
        InputError: weights that are missing, unknown or of another shape, or an output layer of its own where the
            configuration says that it is the embeddings.
    """
    wanted = _weights(hf)
    found = {name for name in state if not name.endswith(INVENTED)}
    if hf.tie_word_embeddings and HEAD in found:
        found.discard(HEAD)
        if not torch.equal(state[HEAD], state[EMBEDDINGS]):
            raise InputError(
                f"{state.folder.name}: {HEAD} differs from {EMBEDDINGS}, and tie_word_embeddings is true",
                "one matrix for both, or tie_word_embeddings=false",
                "correct config.json, or take the weight out, by which of the two the model was trained with",
            )
    missing, unknown = sorted(wanted.keys() - found), sorted(found - wanted.keys())
    if missing:
        raise InputError(
            f"{state.folder.name} has no {', '.join(missing[:4])}"
            + (f" ({len(missing)} of {len(wanted)} weights are missing)" if len(missing) > 1 else ""),
            f"the weights of {hf.num_hidden_layers} layers, tie_word_embeddings={bool(hf.tie_word_embeddings)}".lower(),
            "copy the checkpoint again, or take configuration and weights from one model",
        )
    if unknown:
        raise InputError(
            f"{state.folder.name} has weights without a counterpart: {', '.join(unknown[:6])}",
            "the weights of this architecture as it was published",
            "the checkpoint is of a variant that cannot be converted; docs/models.md lists what can",
        )
    for name, shape in wanted.items():
        if (own := state.shape(name)) is not None and own != shape:
            raise InputError(
                f"{state.folder.name}: {name} of shape {list(own)}",
                f"{list(shape)}, as the configuration says",
                "take configuration and weights from one model",
            )


def _weights(hf: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what transformers' model of this configuration has."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(hf)
    except Exception as error:  # each architecture checks its configuration in its own way, or does not
        raise InputError(
            f"transformers makes no {hf.model_type} model of the configuration ({type(error).__name__}: {error})",
            "a configuration as published",
            "copy config.json again",
        ) from error
    tied = set(model._tied_weights_keys or ()) if hf.tie_word_embeddings else set()
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}
