"""Models, rows and texts of the hub, from a stand-in server."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers.decoders import decoder
from helpers.hubcalls import REPO, ask, command, environment, fetching, refusal, write_repository, write_safetensors
from helpers.hubserver import Hub
from helpers.tiny_tokenizer import byte_tokenizer
from stages.common.files import read_json, read_jsonl
from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.task_library.definitions import documents, load
from stages.tasks.registry import CORPORA


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "repository")


def test_brings_only_the_files_that_are_needed(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    commit = hub.add(REPO, checkpoint)
    done = ask(fetching(commit), hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    snapshot = Path(done.stdout.strip())
    assert sorted(path.name for path in snapshot.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (snapshot / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    asked = {request.rsplit("/", 1)[-1] for request in hub.requests if "/resolve/" in request}
    assert asked == {"config.json", "model.safetensors", "tokenizer.json"}


def test_importing_it_loads_no_torch() -> None:
    done = ask("print('torch' in sys.modules or 'transformers' in sys.modules)")
    assert done.stdout.strip() == "False"


def test_a_dropped_connection_is_resumed_where_it_broke(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    write_safetensors(checkpoint / "model.safetensors", 24 << 20)
    commit = hub.add(REPO, checkpoint)
    hub.drops["model.safetensors"] = 15 << 20
    done = ask(fetching(commit), hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    arrived = Path(done.stdout.strip()) / "model.safetensors"
    assert arrived.read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert len(hub.ranges) == 1


def test_a_killed_download_is_continued_by_the_next_run(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    write_safetensors(checkpoint / "model.safetensors", 24 << 20)
    commit = hub.add(REPO, checkpoint)
    hub.stalls["model.safetensors"] = 15 << 20
    first = subprocess.Popen(
        command(fetching(commit)), env=environment(hub.environment(tmp_path / "home")), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size >= 10 << 20 for path in (tmp_path / "home").rglob("*.incomplete")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    done = ask(fetching(commit), hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    arrived = Path(done.stdout.strip()) / "model.safetensors"
    assert arrived.read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert hub.ranges == [f"model.safetensors bytes={10 << 20}-"]


def test_a_damaged_rest_of_a_download_is_noticed_and_thrown_away(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    commit = hub.add(REPO, checkpoint)
    home = hub.environment(tmp_path / "home")
    assert ask(fetching(commit), home).returncode == 0
    blob = next(path for path in (tmp_path / "home").rglob("blobs/*") if path.stat().st_size > 1000)
    blob.write_bytes(bytes(500))
    blob.rename(blob.with_name(f"{blob.name}.incomplete"))
    assert "damaged" in refusal(fetching(commit), home)
    assert ask(fetching(commit), home).returncode == 0


def test_an_index_that_names_missing_shards_is_an_error(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    weight_map = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    commit = hub.add(REPO, checkpoint)
    message = refusal(fetching(commit), hub.environment(tmp_path / "home"))
    assert "model-00002-of-00002.safetensors" in message


def test_the_stage_gives_the_model_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    model = decoder(vocab_size=320)
    safe, pickled = tmp_path / "safe", tmp_path / "pickled"
    for directory in (safe, pickled):
        model.save_pretrained(directory)
        byte_tokenizer().save_pretrained(directory)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    commits = {directory.name: hub.add(f"someone/{directory.name}", directory) for directory in (safe, pickled)}
    code = f"""
    from stages.model.config import ModelSource
    from stages.model.stage import run
    from stages.stage import Context
    import json
    for name, commit in {commits!r}.items():
        output = Path({str(tmp_path)!r}, "artifact", name)
        output.mkdir(parents=True)
        source = ModelSource(kind="hub", repo=f"someone/{{name}}", revision=commit)
        print(json.dumps(run(source, {{}}, Context(output=output))))
    """
    done = ask(code, hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    ids = torch.arange(20)[None]
    for name, printed in zip(commits, done.stdout.splitlines(), strict=True):
        summary = json.loads(printed)
        assert summary["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert summary["origin"] == {"repo": f"someone/{name}", "revision": commits[name]}
        directory = tmp_path / "artifact" / name / "model"
        assert (directory / "model.safetensors").is_symlink() is (name == "safe")
        assert torch.equal(load_model(directory, dtype="float32")(ids).logits, model(ids).logits)
        assert load_tokenizer(directory).decode([70, 71]) == byte_tokenizer().decode([70, 71])


def test_evaluation_rows_that_the_hub_does_not_have_are_named(hub: Hub, tmp_path: Path) -> None:
    code = f"""
    from stages.tasks.plan import planned
    planned(["piqa"], (), ["wikipedia"], source="hub", cache=Path({str(tmp_path)!r}))
    """
    assert f"{hub.url}/datasets/aps/super_glue does not exist" in refusal(code, hub.environment(tmp_path / "home"))


def data_set(folder: Path, name: str, **splits: list[dict[str, Any]]) -> Path:
    """Write a data set of the hub with one configuration, `name`."""
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in splits)
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {name}\n  data_files:\n{files}---\n")
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_rows_and_texts_come_from_the_hub_at_the_commits_of_the_plan(hub: Hub, tmp_path: Path) -> None:
    boolq = [{"question": f"is {n} odd", "passage": f"Number {n} -- It is {n}.", "label": n % 2} for n in range(4)]
    goals = [{"goal": f"Do {n}.", "sol1": "so", "sol2": "thus", "label": 1} for n in range(3)]
    commits = {
        "aps/super_glue": hub.add(
            "datasets/aps/super_glue", data_set(tmp_path / "glue", "boolq", train=boolq[:1], validation=boolq)
        ),
        "baber/piqa": hub.add(
            "datasets/baber/piqa", data_set(tmp_path / "piqa", "default", train=goals, validation=goals)
        ),
    }
    wikitext = tmp_path / "wikitext" / "wikitext-2-raw-v1"
    wikitext.mkdir(parents=True)
    lines = pa.table({"text": [f" line {n} \n" for n in range(4358)]})
    pq.write_table(lines, wikitext / "test-00000-of-00001.parquet")
    pinned = CORPORA["wikitext2"].revision
    hub.repos["datasets/Salesforce/wikitext"] = {pinned: wikitext.parent, "main": wikitext.parent}
    code = f"""
    from stages.tasks.plan import planned
    from stages.tasks.stage import run
    from stages.stage import Context
    cache = Path({str(tmp_path)!r})
    source = planned(["piqa"], ["wikitext2"], ["wikipedia"], source="hub", num_fewshot=2, cache=cache).config
    print(source.wheel, source.revisions)
    run(source, {{}}, Context(output=Path({str(tmp_path / "artifact")!r}), cache=Path({str(tmp_path)!r})))
    """
    done = ask(code, hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"None {dict(sorted({'Salesforce/wikitext': pinned, **commits}.items()))}"
    assert "fetching wikitext2 from the hub" in done.stderr
    leaf = read_json(tmp_path / "artifact" / "tasks.json")["piqa"]["leaves"]["piqa"]
    assert leaf["source"] == {"repo": "baber/piqa", "name": None, "revision": commits["baber/piqa"]}
    task = load("piqa", tmp_path / "artifact")["piqa"]
    assert [document.gold for document in documents(task, 2)] == [1, 1, 1]
    titles = [row["title"] for row in read_jsonl(tmp_path / "artifact" / "texts" / "wikipedia.jsonl")]
    assert titles == ["Number 1", "Number 2", "Number 3"]
    text = (tmp_path / "artifact" / "corpora" / "wikitext2.txt").read_text()
    assert text.startswith(" line 0 \n\n\n line 1 \n")
    assert not any(request.endswith(".py") for request in hub.requests if request.startswith("GET"))
