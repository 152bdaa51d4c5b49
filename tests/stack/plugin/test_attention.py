"""Student and teacher of any two families can be built in one process, whatever attention each asks for by itself."""

import itertools
import os
from functools import partial
from types import SimpleNamespace

import pytest
from launcher import launch

from nemo_xtoken.errors import InputError

pytestmark = pytest.mark.usefixtures("nemo")


@pytest.fixture
def clean(monkeypatch):
    from nemo_xtoken.training.attention import VARIABLES

    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # restored afterwards, also if a test sets it
        monkeypatch.delenv(name)
    return VARIABLES


#: As far as a configuration has names for them.
SIZES = {
    "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 64, "moe_ffn_hidden_size": 32, "num_attention_heads": 2,
    "num_query_groups": 2, "kv_channels": 32, "num_moe_experts": 4, "seq_length": 16, "apply_rope_fusion": False,
    "gradient_accumulation_fusion": False, "bias_activation_fusion": False, "moe_permute_fusion": False,
    "use_cpu_initialization": True,
}  # fmt: skip


def configs():
    """A configuration of each family, as NeMo makes it, at toy width."""
    from nemo_xtoken.plugin.nemo2.hf.families import FAMILIES, GPT_OSS

    experts = {"num_moe_experts", "bias_activation_fusion", "moe_permute_fusion", "moe_ffn_hidden_size"}
    return [
        family.config(**{name: size for name, size in SIZES.items() if family is GPT_OSS or name not in experts})
        for family in FAMILIES
    ]


def built(config):
    """What every Megatron language model does first."""
    from megatron.core.models.common.language_module.language_module import LanguageModule

    LanguageModule._set_attention_backend(SimpleNamespace(config=config))


def run(student, teachers):
    """The models of a run, in the order in which they are made."""
    from nemo_xtoken.training.attention import settle_attention
    from nemo_xtoken.training.hosting.teacher_host import SHARED_WITH_STUDENT

    settle_attention(student, teachers)
    built(student)
    for teacher in teachers:
        for name in SHARED_WITH_STUDENT:
            setattr(teacher, name, getattr(student, name))
        built(teacher)


def whole_pairs():
    """The two models of a run, by the adapter's own steps, for each pair of families: its names, in one process."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
    from nemo_xtoken.training.attention import VARIABLES, settle_attention
    from nemo_xtoken.training.cpu import runtime as cpu_runtime
    from nemo_xtoken.training.hosting.teacher_host import teacher_host
    from nemo_xtoken.training.inputs import prepare_config
    from nemo_xtoken.training.teacher_settings import NamedTeacher

    torch.set_num_threads(1)
    cpu_runtime.enable()
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    tokenizer, made = SimpleNamespace(vocab_size=64), []
    for number, at in itertools.product(range(len(configs())), repeat=2):
        for name in VARIABLES:
            os.environ.pop(name, None)
        student, teacher = configs()[number], configs()[at]
        settle_attention(student, [teacher])
        prepare_config(student)
        models = [student.configure_model(tokenizer)]
        named = NamedTeacher("teacher", TeacherConfig(path="there"), tokenizer, "p_kl")
        host = teacher_host(
            named,
            teacher,
            student,
            torch.float32,
            partial(teacher.configure_model, tokenizer),
            list,
        )
        models.append(host.load())
        made.append([type(model.config).__name__ for model in models])
    return made


def test_whole_models_of_every_pair(clean, tmp_path):
    [made] = launch(whole_pairs, folder=tmp_path)
    names = [type(config).__name__ for config in configs()]
    assert made == [[student, teacher] for student, teacher in itertools.product(names, repeat=2)]


def test_the_families_do_not_all_want_the_same(clean):
    """Else the test above could not fail."""
    assert len({config.attention_backend for config in configs()}) > 1


def test_runs_after_one_another_in_one_process(clean):
    """As in xtoken_tiny: the teacher is trained before there is a student."""
    for student, teacher in itertools.product(range(len(configs())), repeat=2):
        run(configs()[student], [])
        run(configs()[teacher], [configs()[student]])


def test_a_choice_stays(clean):
    from megatron.core.transformer.enums import AttnBackend

    config, *_, other = configs()
    config.attention_backend = AttnBackend.unfused
    other.attention_backend = AttnBackend.unfused
    run(config, [other])
    assert config.attention_backend is other.attention_backend is AttnBackend.unfused
    os.environ.update(dict(zip(clean, "100", strict=True)))  # the user's
    run(config, [other])
    assert config.attention_backend is other.attention_backend is AttnBackend.flash


def test_variables_that_are_no_backend(clean):
    from nemo_xtoken.training.attention import settle_attention

    os.environ.update(dict(zip(clean, "110", strict=True)))
    with pytest.raises(InputError, match="NVTE_FLASH_ATTN=1, NVTE_FUSED_ATTN=1, NVTE_UNFUSED_ATTN=0"):
        settle_attention(configs()[-1])
