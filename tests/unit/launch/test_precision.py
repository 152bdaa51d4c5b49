"""The precision of a run that leaves it open, from the flags of simulated processors and from what a folder has."""

import json
from types import SimpleNamespace

import pytest

from nemo_xtoken.launch.precision import FULL, HALF, begun_in, bf16_unit, choose_precision, processor_flags
from nemo_xtoken.preflight import checkup, fitting
from nemo_xtoken.recipes import available_recipes
from nemo_xtoken.run.records import PRECISION
from nemo_xtoken.run.settings import Settings

RECIPES = {name: recipe.yaml for name, recipe in available_recipes().items() if recipe.yaml is not None}
#: Flags of Sapphire Rapids, Cooper Lake and Zen 4, Ice Lake, and of an older one.
AMX = "avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8"
AVX512, WIDE, OLD = "avx2 avx512f avx512_bf16", "avx2 avx512f avx512_vnni", "sse4_2 avx2"


@pytest.mark.parametrize(
    ("flags", "unit", "value"),
    [(AMX, "AMX", HALF), (AVX512, "AVX-512 BF16", HALF), (WIDE, None, FULL), (OLD, None, FULL), ("", None, FULL)],
)
def test_a_processor_that_multiplies_bf16_gets_it(flags, unit, value):
    assert bf16_unit(flags.split()) == unit
    chosen = choose_precision(False, flags.split())
    assert chosen.value == value
    assert (unit or "neither AMX nor AVX-512 BF16") in chosen.why


def test_a_gpu_gets_it_whatever_the_processor():
    assert choose_precision(True, ()).value == HALF


def test_several_machines_agree_without_asking_each_other():
    assert choose_precision(False, AMX.split(), nodes=2).value == FULL
    assert choose_precision(True, AMX.split(), nodes=2).value == HALF


def test_flags_are_those_of_linux(tmp_path):
    found = tmp_path / "cpuinfo"
    found.write_text(f"processor\t: 0\nmodel name\t: a\nflags\t\t: {AMX}\nbugs\t\t: spectre_v1\n\nprocessor\t: 1\n")
    assert processor_flags(found) == set(AMX.split())
    found.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert processor_flags(found) == processor_flags(tmp_path / "nothing") == set()


@pytest.fixture
def settled(monkeypatch):
    """``settled(recipe, flags, *words)``: (precision of the configured run, what is said)."""

    def settle(recipe, flags, *words, gpus=0):
        monkeypatch.setattr(fitting, "processor_flags", lambda: frozenset(flags.split()))
        monkeypatch.setattr(fitting, "gpus_here", lambda: gpus)
        settings = Settings.read(RECIPES[recipe], words)
        plugins = SimpleNamespace(precision=settings.get(PRECISION))
        said = fitting.settle_precision(SimpleNamespace(trainer=SimpleNamespace(plugins=plugins)), settings)
        assert settings.get(PRECISION) == plugins.precision
        return plugins.precision, said

    return settle


@pytest.mark.parametrize("recipe", ["xtoken", "xtoken_swap", "xtoken_compress"])
def test_the_recipes_of_any_model_leave_it_open(settled, recipe):
    assert settled(recipe, AMX) == (HALF, f"precision {HALF}, as the processor has AMX ({PRECISION})")
    assert settled(recipe, WIDE)[0] == FULL
    assert settled(recipe, OLD, gpus=1) == (HALF, f"precision {HALF}, on a GPU ({PRECISION})")
    assert settled(recipe, AMX, "trainer.num_nodes=2")[0] == FULL


def test_one_setting_overrides_it(settled):
    assert settled("xtoken_swap", AMX, f"{PRECISION}=32") == (FULL, "")
    assert settled("xtoken_swap", OLD, f"{PRECISION}=bf16-mixed") == (HALF, "")


@pytest.mark.parametrize("recipe", sorted(RECIPES.keys() - {"xtoken", "xtoken_swap", "xtoken_compress"}))
def test_other_recipes_say_it_themselves(settled, recipe):
    said = Settings.read(RECIPES[recipe]).get(PRECISION)
    assert settled(recipe, AMX) == settled(recipe, OLD) == (said, "")
    assert said == (FULL if recipe == "xtoken_tiny" else HALF)


@pytest.mark.parametrize("arm", ["", "ce_only"])
@pytest.mark.parametrize(("begun", "flags"), [(FULL, AMX), (HALF, OLD)])
def test_a_run_goes_on_as_it_was_begun(settled, tmp_path, arm, begun, flags):
    (tmp_path / "mine" / arm).mkdir(parents=True)
    words = [f"log.log_dir={tmp_path}", "log.name=mine"]
    assert settled("xtoken_swap", flags, *words)[0] != begun
    entries = [{"after": 0, "settings": {"objective.scale": 1}}, {"after": 2, "settings": {PRECISION: begun}}]
    (tmp_path / "mine" / arm / "trained_with.json").write_text(json.dumps(entries))
    assert settled("xtoken_swap", flags, *words) == (begun, f"precision {begun}, as the run was begun ({PRECISION})")
    assert settled("xtoken_swap", flags, *words, f"{PRECISION}={HALF}")[0] == HALF


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"after": 0, "settings": {}}]', '[{"settings": 3}]'])
def test_a_run_of_an_earlier_version_goes_on_as_that_chose(tmp_path, content):
    assert begun_in(tmp_path / "nothing", gpu=False) is begun_in(None, gpu=False) is None
    (tmp_path / "trained_with.json").write_text(content)
    assert begun_in(tmp_path, gpu=False) is None
    (tmp_path / "checkpoints" / "step_2-last" / "weights").mkdir(parents=True)
    assert begun_in(tmp_path, gpu=False) == FULL
    assert begun_in(tmp_path, gpu=True) == HALF


@pytest.mark.parametrize("here", [True, False])
def test_preflight_says_what_a_run_would_choose(monkeypatch, here):
    """On the processor of a cluster's node, which is not that of this machine, it says nothing."""
    monkeypatch.setattr(checkup, "processor_flags", lambda: frozenset(AMX.split()))
    [found] = checkup._precision(Settings.read(RECIPES["xtoken_swap"]), 1, here)
    assert (found.check, found.status) == ("precision", "green")
    without = f"; without one {HALF}, as the processor has AMX" if here else ""
    assert found.found == f"{HALF}, on a GPU{without} ({PRECISION})"
    assert list(checkup._precision(Settings.read(RECIPES["xtoken_tiny"]), 1, here)) == []
