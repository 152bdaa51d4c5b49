"""From Hugging Face's format into a NeMo 2 checkpoint."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Optional

import torch
from nemo.collections import llm
from nemo.lightning import io

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.hf.complete import INVENTED, check_complete
from nemo_xtoken.plugin.nemo2.hf.families import family_of_model_type
from nemo_xtoken.plugin.nemo2.hf.family import Holder, convert
from nemo_xtoken.plugin.nemo2.hf.session import prepare, trainer_for
from nemo_xtoken.plugin.nemo2.hf.state import HFState
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.weights.configuration import check_numbers, configured, understood
from nemo_xtoken.weights.folder import ModelFolder
from nemo_xtoken.weights.language_model import left_aside
from nemo_xtoken.weights.tokenizer_files import SPARE_IDS, copy_tokenizer

__all__ = ["HFImporter", "hf_text_config"]


class HFImporter(io.ModelConnector[Any, Any]):
    """NeMo's connector that makes a checkpoint; the path is that of the Hugging Face folder.

    Attributes:
        model_class: of the model in the checkpoint; ``model_class(config, tokenizer=..)`` makes one.
    """

    model_class: ClassVar[type[llm.GPTModel]]

    def init(self) -> llm.GPTModel:
        """The model, not built."""
        prepare()
        return self._model(HFState(ModelFolder(str(self))), XTokenTokenizer(str(self)))

    @property
    def tokenizer(self) -> XTokenTokenizer:
        """Read from the folder."""
        return XTokenTokenizer(str(self))

    def apply(
        self,
        output_path: Path,
        dtype: Optional[torch.dtype] = None,
        say: Callable[[str], None] = lambda stage: None,
    ) -> Path:
        """Converts into ``output_path``, which may exist and be empty."""
        prepare()
        state = HFState(ModelFolder(str(self)), dtype)
        if state.mixed:
            say(state.mixed)
        if (aside := left_aside(state.folder.config, state.folder.where)) is not None:
            say(f"{state.folder.name} {aside}")
        with tempfile.TemporaryDirectory() as temporary:
            say("reading the tokenizer")
            tokenizer = _tokenizer(state.folder, Path(temporary) / "tokenizer")
            model = self._model(state, tokenizer)
            say(f"building {type(model.config).__name__}, {model.config.num_layers} layers")
            with trainer_for(model, ckpt_save_optimizer=False, always_save_context=True) as trainer:
                say("converting the weights")
                _fill(model.module, model.config, state)
                say("writing the checkpoint")
                self.nemo_save(output_path, trainer)
        return output_path

    def _model(self, state: HFState, tokenizer: XTokenTokenizer) -> llm.GPTModel:
        hf = hf_text_config(state.folder)
        family = family_of_model_type(hf.model_type)
        check_numbers(hf, str(state.folder.path / "config.json"))
        if hf.vocab_size != state.vocab_size or tokenizer.vocab_size > state.vocab_size + SPARE_IDS:
            raise InputError(
                f"{state.folder.name}: {state.vocab_size} rows of embeddings, vocab_size {hf.vocab_size} in "
                f"config.json, a tokenizer with ids up to {tokenizer.vocab_size - 1}",
                "the same number of rows in both, and a row for each id",
                "take weights, configuration and tokenizer from one model",
            )
        config = family.nemo_config(hf, max(state.vocab_size, tokenizer.vocab_size), state.dtype)
        check_complete(state, hf)
        return self.model_class(config, tokenizer=tokenizer)


def hf_text_config(folder: ModelFolder) -> Any:
    """transformers' configuration of the language model; no code of the checkpoint is run.

    Raises:
        InputError: an architecture that cannot be imported, or a configuration with keys that are unknown.
    """
    family_of_model_type(str(folder.text_config.get("model_type")))
    source = str(folder.path / "config.json")
    return configured(understood(folder.text_config, source), source)


def _tokenizer(source: ModelFolder, folder: Path) -> XTokenTokenizer:
    """The tokenizer in a folder that a checkpoint copies: its files, and what makes an export like the original."""
    folder.mkdir()
    copy_tokenizer(source.path, folder, load_vocabulary(str(source.path)), loadable=False)
    for name in ("config.json", "generation_config.json"):
        if (source.path / name).is_file():
            shutil.copyfile(source.path / name, folder / name)
    return XTokenTokenizer(str(folder))


def _fill(module: Any, config: Any, state: HFState) -> None:
    """Puts the weights into Megatron's module."""
    names = {n: t for n, t in module.state_dict().items() if t is not None and not n.endswith("_extra_state")}
    family = family_of_model_type(hf_text_config(state.folder).model_type)
    transforms = [w.importing() for w in family.transforms(config, list(names))]
    tied = config.share_embeddings_and_output_weights

    def ignored(name: str) -> bool:
        return name.endswith(INVENTED) or (tied and name == "lm_head.weight")

    with torch.no_grad():
        made = convert(transforms, Holder(None), state, Holder(config), names, ignored)
        for name, parameter in module.named_parameters():
            parameter.data = made.pop(name).to(parameter.dtype)
    if made:
        raise RuntimeError(f"buffers are not converted: {', '.join(made)}")
