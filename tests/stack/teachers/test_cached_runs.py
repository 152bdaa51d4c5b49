"""States on disk teach as the teacher itself does, on the real stack, in any layout."""

import functools
import os
import shutil
import signal

import pytest
from launcher import launch, start

pytestmark = pytest.mark.usefixtures("nemo")

RELATIVE = 1e-5  # the states were computed in batches of other shapes
STEPS = (0, 2)
LAYOUTS = {
    "tp2": (2, {"tp": 2, "micro": 2, "sequence_parallel": True}),
    "pp2": (2, {"pp": 2, "micro": 1}),
    "cp2": (2, {"cp": 2, "micro": 2}),
    "dp2": (2, {"micro": 1}),
}
TEXT = {"text": {"pack": True}}


@pytest.fixture(scope="module")
def course(world, tmp_path_factory):
    """``course(name, ranks, **settings)``: every rank's results of three steps."""
    import jobs
    from watchers import Gradients, Totals, Weights

    def run(name, ranks=1, by=launch, **settings):
        job = world.distillation(
            f"states_{name}",
            watchers=(Totals(), Gradients(STEPS), Weights()),
            **{"optimizer": "sgd", "lr": 0.3, "distributed": False, **TEXT, **settings},
        )
        return by(jobs.train, job, ranks=ranks, folder=world.root / "logs" / job.name)

    return run


@pytest.fixture(scope="module")
def filled(world, tmp_path_factory):
    """``filled(name, ranks, **arguments)``: a folder of states, and the reports of the ranks that filled it."""
    from states import fill_states

    base = tmp_path_factory.mktemp("states")

    def fill(name, ranks=1, folder=None, text=None, **arguments):
        job = world.distillation(f"fill_{name}", text=text or TEXT["text"])
        folder = folder or base / name
        work = functools.partial(fill_states, job, folder, **arguments)
        return folder, launch(work, ranks=ranks, folder=world.root / "logs" / job.name)

    return fill


@pytest.fixture(scope="module")
def states(filled):
    return filled("micro2")[0]


@pytest.fixture(scope="module")
def colocated(course):
    [one] = course("colocated", micro=2)
    return one


def cached(folder, **cache):
    return {"teacher_config": {"source": "cached", "cache": cache_config(folder, **cache)}}


def cache_config(folder, **settings):
    from nemo_xtoken.teachers.source_settings import CacheConfig

    return CacheConfig(str(folder), **settings)


def test_states_of_the_same_shapes_are_the_same_bits(course, states, colocated):
    from watchers import assert_same

    [one] = course("cached", micro=2, **cached(states))
    assert one["weights"] == colocated["weights"]
    assert_same(one, [colocated], STEPS, 1e-15)


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(course, world, states):
    """What had been fetched and read ahead of the checkpoint counts for nothing."""
    from watchers import Pause

    long = {"steps": 6, "micro": 2, "save_every": 2, "optimizer": "adam", **cached(states)}  # sgd cannot be resumed
    [expected] = course("straight", **long)
    flag = world.root / "cached.flag"

    def killed(pids):
        if not flag.exists():
            return False
        os.kill(pids[0], signal.SIGKILL)
        flag.unlink()
        return True

    def interrupted(train, job, **options):
        return start(train, job.but(watchers=(Pause(3, flag),)), when=killed, **options)

    [ended] = course("killed", by=interrupted, **long)
    assert ended.status == -signal.SIGKILL
    [again] = course("killed", **long)
    assert len(again["totals"]) == 4
    assert again["weights"] == expected["weights"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_they_teach_in_any_layout(course, states, colocated, layout):
    from watchers import assert_same

    ranks, settings = LAYOUTS[layout]
    assert_same(colocated, course(f"cached_{layout}", ranks, **settings, **cached(states)), STEPS, RELATIVE)


def test_half_precision_is_kept_bit_by_bit(course, filled):
    folder, _ = filled("bf16", dtype="bf16")
    settings = {"precision": "bf16-mixed", "micro": 2}
    [expected] = course("colocated_bf16", **settings)
    [found] = course("cached_bf16", **settings, **cached(folder))
    assert found["weights"] == expected["weights"]
    assert found["totals"] == expected["totals"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_teacher_writes_them(filled, states, layout):
    """Tensor, pipeline and context parallel, and two copies that share the work.

    States of one position agree to 1e-5 of the largest of them: each is a sum over all of the layer below, whose
    rounding goes by what was added and not by what is left.
    """
    import torch

    from nemo_xtoken.teachers.store.state_store import StateStore

    sizes = {name: size for name, size in LAYOUTS[layout][1].items() if name in ("tp", "pp", "cp", "micro")}
    folder, reports = filled(layout, 2, **sizes)
    assert reports[0].new_tokens == reports[1].new_tokens > 1000
    ours, theirs = StateStore(states, None), StateStore(folder, None)
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.table.keys == theirs.table.keys).all()
    for shard, row, other_shard, other_row in zip(
        ours.table.shards, ours.table.rows, theirs.table.shards, theirs.table.rows, strict=True
    ):
        one, other = ours.shard(int(shard)).record(int(row)), theirs.shard(int(other_shard)).record(int(other_row))
        assert (one.ids == other.ids).all()
        scale = one.stored.values.abs().amax(1, keepdim=True)
        torch.testing.assert_close(one.stored.values / scale, other.stored.values / scale, rtol=0, atol=RELATIVE)


def test_the_command_goes_on_where_it_was_and_parts_make_a_whole(filled, states):
    from nemo_xtoken.teachers.store.state_store import StateStore

    whole = StateStore(states, None)
    (states / "index.safetensors").unlink()  # as where the disk had no room for it
    _, [again] = filled("again", folder=states)
    assert (again.new_tokens, again.tokens) == (0, whole.tokens)
    assert (states / "index.safetensors").is_file()
    folder, [first] = filled("part0", part=(0, 2))
    _, [second] = filled("part1", folder=folder, part=(1, 2))
    together = StateStore(folder, None)
    assert first.new_tokens + second.new_tokens == together.tokens == whole.tokens
    assert (together.table.keys == whole.table.keys).all()
    lost = next(path for path in folder.rglob("states-*") if "00001-of" in str(path))
    lost.unlink()
    _, [third] = filled("part1_again", folder=folder, part=(1, 2))
    assert third.new_tokens == second.new_tokens


def test_whole_documents_serve_a_run_with_other_pieces(course, filled, states):
    """Another seed packs and cuts the documents in other places; where nothing is cut the states are the same."""
    from watchers import assert_same

    long = {"text": {"pack": False, "student_length": 256, "teacher_length": 384, "seed": 77}, "micro": 2}
    [expected] = course("colocated_long", **long)
    folder, _ = filled("documents", whole=True, text={"teacher_length": 384})
    assert_same(expected, course("documents_long", **long, **cached(folder)), STEPS, RELATIVE)
    [cut] = course("documents_cut", micro=2, **cached(folder, context="document"), text={"pack": True, "seed": 77})
    assert cut["totals"][0]["kd/teacher"] > 0
    with pytest.raises(AssertionError, match=r"no states for \d+ of \d+ pieces(.|\n)*cache\.context=document"):
        course("documents_piece", micro=2, **cached(folder), text={"pack": True, "seed": 77})


@pytest.fixture(scope="module")
def samples(filled):
    return filled("sampled", format_name="sampled")[0]


SAMPLED = {"loss": "p_kl", "scale": 0.5}


def test_samples_teach_in_any_layout_and_whoever_drew_them(course, filled, samples):
    import torch
    from watchers import assert_same

    from nemo_xtoken.teachers.store.state_store import StateStore

    [one] = course("sampled", micro=2, **SAMPLED, **cached(samples))
    for layout in ("tp2", "cp2"):  # by pipeline and data parallel ranks they are read as states are
        ranks, settings = LAYOUTS[layout]
        found = course(f"sampled_{layout}", ranks, **settings, **SAMPLED, **cached(samples))
        assert_same(one, found, STEPS, RELATIVE)
    folder, _ = filled("sampled_tp2", 2, tp=2, format_name="sampled")
    rows = []
    for where in (samples, folder):
        store = StateStore(where, None)
        records = zip(store.table.keys.tolist(), store.table.shards, store.table.rows, strict=True)
        stored = {key: store.shard(int(shard)).record(int(row)).stored for key, shard, row in records}
        rows.append(torch.cat([store.format.decode(one, torch.float32) for _, one in sorted(stored.items())]))
    assert (rows[0][:, :-1] == rows[1][:, :-1]).float().mean() > 0.999  # one may lie at the edge of its token
    torch.testing.assert_close(rows[0][:, -1], rows[1][:, -1], rtol=RELATIVE, atol=RELATIVE)


BIASED = {
    "loss": ({"loss": "prefix_kl", "scale": 0.5}, "loss=prefix_kl, with its options"),
    "option": ({"loss": "p_kl", "scale": 0.5, "options": {"direction": "reverse"}}, "loss=p_kl, with its options"),
    "scale": ({"loss": "p_kl", "scale": "dynamic"}, "objective.scale=dynamic and the samples"),
    "weights": ({**SAMPLED, "objective": {"teacher_weights": "entropy"}}, "objective.teacher_weights=entropy"),
}


@pytest.mark.parametrize("biased", BIASED)
def test_what_samples_would_bias_is_refused(course, samples, biased):
    from nemo_xtoken.losses.options import DivergenceOptions

    settings, message = BIASED[biased]
    config = cached(samples)["teacher_config"]
    if "options" in settings:
        config["options"] = DivergenceOptions(**settings["options"])
    rest = {name: value for name, value in settings.items() if name != "options"}
    with pytest.raises(AssertionError, match=message):
        course(f"biased_{biased}", micro=2, teacher_config=config, **rest)


def test_samples_and_states_do_not_mix(filled, samples):
    with pytest.raises(AssertionError, match=r"format=fp32 in .*, which has sampled"):
        filled("mixed", folder=samples)


def test_teachers_of_different_sources(course, states, world):
    """One on disk and one beside the student, with different losses."""
    from watchers import assert_same

    def settings(source):
        one = {"path": world.teacher, "loss": "p_kl", **source}
        return {
            "teacher": None,
            "teachers": {"one": one, "two": {"path": world.teacher, "loss": "gold", "weight": 0.5}},
        }

    [expected] = course("two_colocated", micro=2, **settings({}))
    found = course("two_sources", micro=2, **settings(cached(states)["teacher_config"]))
    assert_same(expected, found, STEPS, RELATIVE)


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_file_is_named(course, states, tmp_path, damage):
    folder = tmp_path / "states"
    shutil.copytree(states, folder)
    file = next(folder.rglob("states-*"))
    if damage == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        for at in range(len(content) // 10, len(content) // 4 * 3, 1000):  # three steps do not read all of it
            content[at] ^= 1
        file.write_bytes(content)
    with pytest.raises(AssertionError, match=file.name):
        course(f"damaged_{damage}", micro=2, **cached(folder))


def test_another_precision_is_another_teacher(course, states):
    with pytest.raises(AssertionError, match="of another teacher: dtype float32 where bfloat16 is wanted"):
        course("other_dtype", micro=2, precision="bf16-mixed", **cached(states))


def test_held_out_text_is_there_as_well(world, course, filled, states):
    """A run that evaluates reads it before the first step; without its states the run does not begin."""
    from nemo_xtoken.run.records import read_history

    def distances(name):
        return [r["held_out_kd"] for r in read_history(world.root / "runs" / f"states_{name}") if "held_out_kd" in r]

    beside = {"validate": 1, "micro": 2}
    course("evaluated", **beside)
    course("cached_evaluated", **beside, **cached(states))
    assert distances("cached_evaluated") == pytest.approx(expected := distances("evaluated"), rel=RELATIVE)
    assert len(expected) == 4
    text = {"held_out": 0, "paths": [f"{world.root}/text/1*.txt"]}
    folder, _ = filled("training_alone", text=TEXT["text"] | text)
    text |= {"held_out_paths": [f"{world.root}/text/0*.txt"]}
    with pytest.raises(AssertionError, match=r"has no states for (\d+) of \1 pieces of the run's text"):
        course("cached_unevaluated", **beside, text=TEXT["text"] | text, **cached(folder))
