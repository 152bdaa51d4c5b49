"""What a file may name: real recipes and contexts pass, and nothing that leads out of the list does."""

from pathlib import Path

import pytest
import yaml

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.arguments.trusted_names import check_content_trusted, check_named, is_named_trusted

ROOT = Path(__file__).parents[3]
FILES = [*sorted((ROOT / "conf").rglob("*.yaml")), *sorted((ROOT / "tests" / "fixtures").rglob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_this_package_has_written_passes(path):
    check_content_trusted(yaml.safe_load(path.read_text()), str(path))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "posix.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.exec",
        "builtins.__import__",
        "builtins.getattr",
        "runpy.run_path",
        "importlib.import_module",
        "pickle.loads",
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "torch.utils.cpp_extension.load",
        "torch.package.PackageImporter",
        "lightning.pytorch.cli.LightningCLI",
        "lightning.pytorch.core.saving.load_from_checkpoint",
        "transformers.AutoModel.from_pretrained",
        "nemo_run.Script",
        "nemo_xtokens.evil.Thing",
        "my_recipes.Mine",
        "evil",
        "",
        "nemo_xtoken.plugin.swapping._measure",
    ],
)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_what_a_file_must_not_build(target, depth):
    content = {"_target_": target, "x": 1}
    for _ in range(depth):
        content = {"_target_": "nemo_xtoken.data.config.DataConfig", "paths": [{"a": content}]}
    with pytest.raises(InputError, match="trust=true"):
        check_content_trusted(content, "run.yaml")


@pytest.mark.parametrize(
    "content",
    [
        {"trust": True},
        {"teacher": {"trust": True}},
        {"teachers": {"one": {"trust": "true"}}},
        {"tokenizer": {"trust_remote_code": True}},
        {"model": {"_factory_": "os.system('x')"}},
        {"teacher": {"loss": "my_losses:Hellinger"}},
        {"teachers": {"one": {"source": "outside.deep:Replayed"}}},
    ],
)
def test_a_file_does_not_trust_itself_and_names_no_code(content):
    with pytest.raises(InputError, match="trust=true"):
        check_content_trusted({"_target_": "nemo_xtoken.plugin.nemo2.distill.distill", **content}, "run.yaml")


@pytest.mark.parametrize(
    "content",
    [
        None,
        "text",
        {"trainer": {"max_steps": 3}},
        {"teacher": {"loss": "p_kl", "trust": False, "source": None}},
        {"teacher": {"loss": "nemo_xtoken.losses.gold:Gold"}},
        {"data": {"text": {"paths": ["s3://a:b"], "time": "4:00:00"}}},
    ],
)
def test_plain_values_pass(content):
    check_content_trusted(content, "run.yaml")


def test_names_that_lead_out_are_found_by_what_they_are():
    """An import inside an allowed module, under the module's name."""
    import nemo_xtoken.files as module

    for name in ("os.system", "json.loads", "hashlib.sha256", "shutil.rmtree", "functools.lru_cache", "os"):
        found = module
        for part in name.split("."):
            found = getattr(found, part)
        full = f"nemo_xtoken.files.{name}"
        assert is_named_trusted("nemo_xtoken.files", name)
        with pytest.raises(InputError, match="trust=true"):
            check_named(found, full, "io.json")


def test_classes_and_values_of_the_list():
    import torch

    from nemo_xtoken.data.config import DataConfig

    check_named(DataConfig, "nemo_xtoken.data.config.DataConfig", "x")
    check_named(torch.bfloat16, "torch.bfloat16", "x")
    check_named(torch.nn.functional.silu, "torch.nn.functional.silu", "x")
    check_named(torch.nn.functional.gelu, "torch.nn.functional.gelu", "x")  # written in C
    check_named(torch.nn.Linear, "torch.nn.Linear", "x")
    for name in ("load", "save", "_C"):
        with pytest.raises(InputError):
            check_named(getattr(torch, name), f"torch.{name}", "x")
