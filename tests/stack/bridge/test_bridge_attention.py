"""Student and teacher of any two families get one attention backend under Bridge, whatever each asks for."""

import itertools
import os
from types import SimpleNamespace

import pytest
from launcher import launch
from test_bridge_families import FAMILIES

pytestmark = pytest.mark.usefixtures("megatron", "bridge")

#: Beside those; Bridge's own provider asks for another backend than theirs.
FURTHER = ("gemma3",)


def providers(folders):
    """A run's own step, for each pair of folders: what its student's and its teacher's provider ask for afterwards."""
    from bridge_jobs import on_cpu

    from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint
    from nemo_xtoken.training.attention import settle_attention

    on_cpu()
    for student, teacher in itertools.product(folders, repeat=2):
        forget()
        made = [Checkpoint.at(folder, "path").provider(random_weights=True) for folder in (student, teacher)]
        wanted = [provider.attention_backend.name for provider in made]
        settle_attention(*made[:1], made[1:])
        yield *made, wanted


def forget():
    from nemo_xtoken.training.attention import VARIABLES

    for name in VARIABLES:
        os.environ.pop(name, None)


def first_steps(folders):
    """What every Megatron language model does first, for each pair: the backend of both, and what they wanted."""
    from megatron.core.models.common.language_module.language_module import LanguageModule

    found = []
    for student, teacher, wanted in providers(folders):
        teacher.attention_backend = student.attention_backend
        for provider in (student, teacher):
            LanguageModule._set_attention_backend(SimpleNamespace(config=provider))
        found.append((student.attention_backend.name, wanted))
    forget()
    return found


def test_one_backend_for_every_pair(bridge_world, tmp_path):
    kinds = [*FAMILIES, *FURTHER]
    folders = [str(bridge_world.family(kind, **FAMILIES.get(kind, {}))) for kind in dict.fromkeys(kinds)]
    [found] = launch(first_steps, folders, folder=tmp_path)
    assert len(found) == len(folders) ** 2
    for backend, wanted in found:
        assert backend == (wanted[0] if len(set(wanted)) == 1 else "auto")
    assert len({tuple(wanted) for _, wanted in found}) > 1  # else nothing could go wrong
