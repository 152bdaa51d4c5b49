"""Models in Hugging Face's format for Bridge's conversions; of a model of several kinds of input its language model.

Bridge would make the whole of such a model, with its vision tower; for the language model it has a conversion of its
own, which gets that model's configuration and its weights by the names that it has alone.
"""

import copy
import functools
import os
from pathlib import Path
from typing import Any

from megatron.bridge import AutoBridge
from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
from megatron.bridge.models.hf_pretrained.state import SafeTensorsStateSource, StateDict
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.progress import say
from nemo_xtoken.run.hf_models import not_alone, replaced
from nemo_xtoken.weights.folder import read_config
from nemo_xtoken.weights.language_model import TIED, language_config, language_tensors, left_aside

__all__ = ["bridge_of", "provider_of"]


def provider_of(source: str, random_weights: bool) -> Any:
    """Bridge's model provider, to be configured; it loads the weights when it is used.

    Args:
        source: a folder or hub name.
        random_weights: take the architecture alone.

    Raises:
        InputError: Bridge does not know the architecture, or would make another model of it.
    """
    name = source
    try:
        config, inside = _language_model(source)
        name += f" (its language model is a {config.architectures[0]})" if inside else ""
        if (problem := replaced(config.to_dict(), source)) is not None:
            raise problem
        bridge = _bridge_of(source, config, inside, weights=not random_weights)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{name} cannot be loaded by Megatron-Bridge ({error})",
            "a Hugging Face model of an architecture that Bridge supports",
            "see AutoBridge.list_supported_models() for the architectures",
        ) from error
    if isinstance(bridge.hf_pretrained, _Inside):
        say(f"{source} {bridge.hf_pretrained.aside()}", os.environ.get("RANK", "0") == "0")
    try:
        return bridge.to_megatron_provider(load_weights=not random_weights)
    except AttributeError:  # up to 0.5 the conversion of Gemma 3 asks for the model's place, which this has not
        if not random_weights:
            raise
    return _bridge_of(source, config, inside).to_megatron_provider(load_weights=False)


def bridge_of(source: str, weights: bool = True) -> AutoBridge:
    """Bridge's conversion for a model.

    Args:
        source: a folder or hub name.
        weights: False: of its configuration alone.

    Raises:
        ValueError: Bridge has none for this architecture.
    """
    return _bridge_of(source, *_language_model(source), weights)


def _language_model(source: str) -> tuple[Any, bool]:
    """transformers' configuration of a language model, and whether it is inside another model.

    Args:
        source: a folder or hub name.

    Raises:
        InputError: it is inside another, and transformers has none such by itself.
        ValueError, OSError: transformers does not read it.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    whole = AutoConfig.from_pretrained(source, trust_remote_code=False)
    inner = whole.get_text_config(decoder=True)
    if inner is whole:
        return whole, False
    if (name := MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(inner.model_type)) is None:
        raise not_alone(inner.model_type, source)
    config = copy.deepcopy(inner)
    config.architectures, config.name_or_path = [name], source
    if (tied := language_config(read_config(source)[0]).get(TIED)) is not None:
        config.tie_word_embeddings = tied
    if config.dtype is None:
        config.dtype = whole.dtype
    return config, True


def _bridge_of(source: str, config: Any, inside: bool, weights: bool = True) -> AutoBridge:
    if not weights:
        return AutoBridge.from_hf_config(config)
    if not inside:
        return AutoBridge.from_hf_pretrained(source, trust_remote_code=False)
    AutoBridge.from_hf_config(config)  # whether there is one
    model = _Inside(source)
    model.config = config
    return AutoBridge(model)


class _Inside(PreTrainedCausalLM):
    """The language model inside another, as one by itself."""

    OPTIONAL_ARTIFACTS = ("generation_config",)  # the processors are for what it does not see

    @functools.cached_property
    def state(self) -> StateDict:
        """Its weights, read when they are asked for."""
        return StateDict(_Source(self.model_name_or_path))

    def aside(self) -> str | None:
        """What is not used of the model around it, for the person who watches."""
        source = str(self.model_name_or_path)
        return left_aside(read_config(source)[0], SafeTensorsStateSource(source).key_to_filename_map)


class _Source(SafeTensorsStateSource):
    """Weights of the language model in the files of a whole model, by the names that they have without the rest."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._files = SafeTensorsStateSource(path)

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Own name -> name in the files."""
        return language_tensors(self._files.key_to_filename_map)

    @functools.cached_property
    def key_to_filename_map(self) -> dict[str, str]:
        """Own name -> file."""
        files = self._files.key_to_filename_map
        return {own: files[name] for own, name in self.names.items()}

    def get_all_keys(self) -> list[str]:
        """Own names."""
        return sorted(self.names)

    def load_tensors(self, keys_to_load: list[str]) -> dict[str, Tensor]:
        """By their own names."""
        found = self._files.load_tensors([self.names[key] for key in keys_to_load])
        return {key: found[self.names[key]] for key in keys_to_load}
