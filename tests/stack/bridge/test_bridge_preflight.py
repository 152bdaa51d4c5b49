"""``xtoken preflight`` and ``xtoken sbatch`` for a run under Megatron-Bridge; they need neither it nor a GPU."""

import json
import shutil

import pytest
from tokenizer_zoo import TEXT, zoo
from toy_models import KINDS, write_model

from nemo_xtoken.commands.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind, side in (("llama", "student"), ("qwen3", "teacher")):
        write_model(kind, root / side, spare_rows=24 + -zoo()[KINDS[kind][1]].size % 8)
    (root / "text.txt").write_text(TEXT)
    return root


def _words(models, **changes):
    settings = {
        "resume.restore_config.path": models / "student",
        "teacher.path": models / "teacher",
        "data.text.paths": f"['{models}/text.txt']",
        "trainer.strategy.tensor_model_parallel_size": 2,
        "teacher.learned": "true",
        "evaluate.every": 500,
        **changes,
    }
    return [f"{name}={value}" for name, value in settings.items()]


def _preflight(capsys, *words, recipe="recipe=xtoken_qwen3_llama1b"):
    status = main(["preflight", recipe, "framework=bridge", "nodes=1", "gpus=2", "slurm=none", "--json", *words])
    report = json.loads(capsys.readouterr().out)
    return status, [f for f in report["checks"] if f["status"] == "red"], report


def test_a_run_from_hugging_face_models_can_be(models, capsys):
    """The same recipe under NeMo 2 is told to import them."""
    status, red, report = _preflight(capsys, *_words(models))
    assert (status, red) == (0, [])
    found = {f["check"]: f["found"] for f in report["checks"] if f["status"] == "green"}
    assert found["student"] == f"3 layers of 48, in {models}/student"
    assert found["layout"] == "2 GPUs: tensor 2 x data 1"
    assert "GiB on a GPU" in found["memory"]
    assert main(["preflight", "recipe=xtoken_qwen3_llama1b", "framework=nemo2", "slurm=none", "nodes=1", "gpus=2",
                 "--json", *_words(models)]) == 1  # fmt: skip
    assert "a model in Hugging Face's format" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer.strategy.tensor_model_parallel_size": 3}, "output layer has 1888 rows"),
        ({"teacher.path": "/no/such/place"}, "no checkpoint at teacher.path=/no/such/place"),
        ({"teacher.path": "nemo2"}, "is a NeMo 2 checkpoint"),
        ({"teacher.loss": "prefix_k"}, "prefix_k"),
        (
            {"trainer.strategy.virtual_pipeline_model_parallel_size": 2},
            "trainer.strategy.virtual_pipeline_model_parallel_size=2",
        ),
        ({"trainer.plugins.precision": "16-mixed"}, "trainer.plugins.precision=16-mixed"),
        ({"optim.config.lr": "1e-6"}, "optim.lr_scheduler.min_lr=5e-06, optim.config.lr=1e-06"),
        ({"trainer.seed": 0}, "trainer.seed=0"),
        ({"track": "paper"}, "track=paper"),
    ],
    ids=["rows", "nothing", "NeMo 2", "loss", "virtual pipeline", "precision", "rates", "seed", "tracker"],
)
def test_what_would_fail_is_red(models, capsys, changes, message, tmp_path, monkeypatch):
    for part in ("weights", "context"):
        (tmp_path / "nemo2" / part).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    status, red, _ = _preflight(capsys, *_words(models, **changes))
    assert status == 1
    assert any(message in f["found"] for f in red), red


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("side", ["resume.restore_config.path", "teacher.path"])
@pytest.mark.parametrize(
    ("config", "of_teacher", "message"),
    [
        ({"rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 64}}, True, "embeddings=64 in its rotary"),
        ({"rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 8192}}, True, None),
        (
            {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
            True,
            "full_attention=[1] in its layers",
        ),
        ({"model_type": "phi3"}, True, "Phi3ForCausalLM, for which Megatron-Bridge has no conversion"),
        ({"num_nextn_predict_layers": 1}, False, "mtp_num_layers=1 (student)"),
        ({"mtp_num_hidden_layers": 1}, False, "mtp_num_layers=1 (student)"),
        ({"num_local_experts": 4}, False, "4 experts, tensor_model_parallel_size is 2, without sequence"),
    ],
    ids=["rotary", "rotary as published", "windows", "unknown", "further tokens", "Qwen3.5's", "experts"],
)
def test_a_model_that_would_be_refused_is_red(models, capsys, side, config, of_teacher, message, tmp_path):
    """By the words of the run, from a configuration alone."""
    folder = tmp_path / "changed"
    shutil.copytree(models / side.split(".")[0].replace("resume", "student"), folder)
    found = {**json.loads((folder / "config.json").read_text()), "rope_parameters": None}
    (folder / "config.json").write_text(json.dumps(found | {"model_type": "llama"} | config))
    settings = {side: folder, "trainer.strategy.sequence_parallel": "false"}
    status, red, _ = _preflight(capsys, *_words(models, **settings))
    expected = message if of_teacher or side.startswith("resume") else None
    assert status == (expected is not None)
    assert all(expected in f["found"] for f in red), red


def test_bridge_s_own_checkpoint_is_read(models, capsys, tmp_path):
    folder = tmp_path / "run/checkpoints/iter_0000004"
    folder.mkdir(parents=True)
    model = {"_target_": "x.Provider", "num_layers": 3, "hidden_size": 48, "num_attention_heads": 4,
             "num_query_groups": 2, "vocab_size": 1888, "hf_model_id": str(models / "student")}  # fmt: skip
    (folder / "run_config.yaml").write_text(json.dumps({"model": model}))
    words = _words(models, **{"resume.restore_config.path": tmp_path / "run/checkpoints"})
    status, red, report = _preflight(capsys, *words)
    assert (status, red) == (0, [])
    assert any(f["found"] == f"3 layers of 48, in {tmp_path}/run/checkpoints" for f in report["checks"])
    (folder / "run_config.yaml").write_text("model: 7\n")
    assert "model is a int" in _preflight(capsys, *words)[1][0]["found"]


def test_a_job_is_written_for_it(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["recipe=xtoken_qwen3_llama1b", "slurm=venv", "out=job.sbatch", "executor.nodes=1", *_words(models)]
    assert main(["sbatch", *words]) == 0, capsys.readouterr().err
    assert "nemo llm distill --recipe xtoken_qwen3_llama1b" in (tmp_path / "job.sbatch").read_text()


GEMMA_3_4B = {  # as published: what is not there is the class's
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
}


@pytest.mark.parametrize("framework", ["bridge", "nemo2"])
@pytest.mark.parametrize(
    ("whole", "text", "refused"),
    [
        ("gemma3", GEMMA_3_4B, {}),
        ("mistral3", {"model_type": "mistral"}, {}),
        ("qwen3_5", {"model_type": "qwen3_5_text"}, {"nemo2": "a model of type 'qwen3_5_text'"}),
        (
            "llama4",
            {"model_type": "llama4_text"},
            {"bridge": "is a Llama4ForCausalLM, for which Megatron-Bridge has no", "nemo2": "of type 'llama4_text'"},
        ),
        (
            "qwen3_vl",
            {"model_type": "qwen3_vl_text"},
            {"bridge": "of type qwen3_vl_text, for which transformers has no", "nemo2": "of type 'qwen3_vl_text'"},
        ),
    ],
)
def test_of_a_model_that_sees_images_the_language_model_is_looked_at(
    models, capsys, tmp_path, framework, whole, text, refused
):
    """As teacher and as student of the recipe that takes any two folders."""
    folder = tmp_path / whole
    shutil.copytree(models / "student", folder)
    own = {**json.loads((folder / "config.json").read_text()), "rope_parameters": None}
    inner = text if len(text) > 1 else own | text
    (folder / "config.json").write_text(json.dumps({"model_type": whole, "vision_config": {}, "text_config": inner}))
    words = [f"student={folder}", f"teacher={folder}", f"data.text.paths=['{models}/text.txt']"]
    main(["preflight", "recipe=xtoken", f"framework={framework}", "nodes=1", "gpus=1", "slurm=none", "--json", *words])
    checks = [c for c in json.loads(capsys.readouterr().out)["checks"] if c["check"] in ("student", "teacher")]
    if framework in refused:
        red = [c["found"] for c in checks if c["status"] == "red"]
        assert len(red) == 2
        assert all(refused[framework] in found for found in red)
        return
    layers, width = inner["num_hidden_layers"], inner["hidden_size"]
    found = [c["found"] for c in checks if c["status"] == "green"]
    assert found == [f"{layers} layers of {width}, in {folder}, the language model of a {whole}"] * 2
