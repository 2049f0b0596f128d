"""The hub path against a stand-in server. A process for each scenario: huggingface_hub reads its settings once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers.decoders import decoder
from helpers.hubserver import TOKEN, Hub
from helpers.serving import answering
from helpers.tiny_tokenizer import byte_tokenizer
from stages.common.files import read_json, read_jsonl
from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.task_library.definitions import documents, load
from stages.tasks.registry import CORPORA

REPO = "someone/tiny"
PREAMBLE = """
import logging, sys
from pathlib import Path
from stages.errors import UserError
from stages.fetch.hub import resolve_revision
from stages.model.hub import cached_config, download
logging.basicConfig(level=logging.INFO, format="%(message)s")
def main():
    {code}
try:
    main()
except UserError as error:
    sys.exit(f"UserError: {{error}}")
"""


def command(code: str) -> list[str]:
    return [sys.executable, "-c", PREAMBLE.format(code=code)]


def environment(*layers: dict[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    for layer in layers:
        clean |= layer
    return clean


def ask(code: str, *layers: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(code), env=environment(*layers), capture_output=True, text=True, timeout=120)


def refusal(code: str, *layers: dict[str, str]) -> str:
    """Run `code` and return its UserError."""
    done = ask(code, *layers)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr[done.stderr.rindex("UserError: ") :]
    assert "Traceback" not in done.stderr
    return last


def write_safetensors(path: Path, size: int) -> None:
    """Write one float32 tensor of `size` bytes without torch."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(256)) * (size // 256))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A repository with everything twice, as they come: two weight formats, other frameworks, papers."""
    directory = tmp_path / "repository"
    (directory / "original").mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "tokenizer.json").write_text("{}")
    for name in ("README.md", "pytorch_model.bin", "tf_model.h5", "original/consolidated.pth", "modeling.py"):
        (directory / name).write_text(name)
    write_safetensors(directory / "model.safetensors", 1024)
    return directory


def fetching(revision: str) -> str:
    return f"print(download({REPO!r}, {revision!r}))"


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


def test_a_gated_repository_without_a_token_says_what_to_do(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    commit = hub.add(REPO, checkpoint)
    hub.gated.add(REPO)
    home = hub.environment(tmp_path / "home")
    message = refusal(fetching(commit), home)
    assert "gated" in message
    assert "HF_TOKEN" in message
    assert f"{hub.url}/{REPO}" in message
    assert "has no access" in refusal(fetching(commit), home, {"HF_TOKEN": "hf_wrong"})
    assert ask(fetching(commit), home, {"HF_TOKEN": TOKEN}).returncode == 0


def test_a_missing_repository_or_revision_is_named(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.add(REPO, checkpoint)
    home = hub.environment(tmp_path / "home")
    assert "someone/tiyn does not exist" in refusal("resolve_revision('someone/tiyn', 'main')", home)
    assert "no revision 'nain'" in refusal(f"resolve_revision({REPO!r}, 'nain')", home)
    assert "OWNER/NAME" in refusal("resolve_revision('a/b/c', 'main')", home)


def test_offline_takes_what_is_cached_and_refuses_the_rest(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    commit = hub.add(REPO, checkpoint)
    home = hub.environment(tmp_path / "home")
    offline = home | {"HF_HUB_OFFLINE": "1"}
    message = refusal(fetching(commit), offline)
    assert "HF_HUB_OFFLINE" in message
    assert ask(f"print(resolve_revision({REPO!r}, 'main'))", home).stdout.strip() == commit
    assert ask(fetching(commit), home).returncode == 0
    hub.requests.clear()
    code = f"commit = resolve_revision({REPO!r}, 'main'); print(cached_config({REPO!r}, commit)['model_type']);"
    code += f"print(download({REPO!r}, commit))"
    done = ask(code, offline)
    assert done.stdout.startswith("llama\n"), done.stderr
    assert hub.requests == []


def test_an_unreachable_hub_is_named_and_a_cached_model_still_used(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    commit = hub.add(REPO, checkpoint)
    home = hub.environment(tmp_path / "home")
    nowhere = home | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    message = refusal(fetching(commit), nowhere)
    assert "can't be reached" in message
    assert "HF_ENDPOINT" in message
    assert ask(fetching(commit), home).returncode == 0
    done = ask(fetching(commit), nowhere)
    assert done.returncode == 0, done.stderr
    assert "out of reach" in done.stderr


def test_a_hub_that_never_answers_is_given_up(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    commit = hub.add(REPO, checkpoint)
    home = hub.environment(tmp_path / "home")
    assert ask(f"print(resolve_revision({REPO!r}, 'main'))", home).stdout.strip() == commit
    assert ask(fetching(commit), home).returncode == 0
    # The system takes connections for a socket that listens; nobody reads what is asked.
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = home | {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}", "HF_HUB_ETAG_TIMEOUT": "1"}
        done = ask(f"print(download({REPO!r}, resolve_revision({REPO!r}, 'main')))", silent)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("out of reach") == 2
        assert "can't be reached" in refusal("resolve_revision('someone/else', 'main')", silent)
        assert "can't be reached" in refusal(f"download({REPO!r}, 'b' * 40)", silent)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"
NO_HUB = {
    "cut off": b"",
    "cut short": OK % (1000, b'{"id":'),
    "a login page": OK % (13, b"<html></html>"),
    "other JSON": OK % (2, b"{}"),
    "no object": OK % (2, b"[]"),
    "no commit": OK % (22, b'{"id": "someone/tiny"}'),
    "no HTTP": b"220 mail ready\r\n",
    "no gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "a circle": b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
}
"""What may answer in the hub's place."""


@pytest.mark.parametrize("answer", NO_HUB.values(), ids=NO_HUB.keys())
def test_what_is_no_hub_is_out_of_reach(answer: bytes, tmp_path: Path) -> None:
    reference = tmp_path / "hub" / "models--someone--tiny" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("a" * 40)
    code = f"print(resolve_revision({REPO!r}, 'main')); resolve_revision({REPO!r}, 'other')"
    with answering(answer) as url:
        done = ask(code, {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path)})
    assert done.stdout.strip() == "a" * 40, done.stderr
    assert done.stderr.count("out of reach") == 1
    assert "UserError: the hub at" in done.stderr
    assert "can't be reached" in done.stderr
    assert reference.read_text() == "a" * 40
    assert not reference.with_name("other").exists()


def test_an_address_without_a_scheme_is_named(tmp_path: Path) -> None:
    message = refusal("resolve_revision('someone/tiny', 'main')", {"HF_ENDPOINT": "hub.example", "HF_HOME": "nowhere"})
    assert "the hub at hub.example can't be reached" in message
    assert "HF_ENDPOINT" in message


@pytest.mark.parametrize("answer", ["cut off", "no HTTP", "a login page"])
def test_a_file_that_is_answered_by_no_hub_is_one_error(
    answer: str, hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    commit = hub.add(REPO, checkpoint)
    code = f"""
    from stages.fetch.hub import fetch_file
    from stages.fetch.hub_errors import explain_hub_errors
    with explain_hub_errors({REPO!r}, {commit!r}):
        fetch_file({REPO!r}, {commit!r}, "config.json")
    """
    with answering(NO_HUB[answer]) as url:
        assert "can't be reached" in refusal(code, hub.environment(tmp_path / "home") | {"HF_ENDPOINT": url})


def test_a_licence_that_is_refused_after_the_download_costs_only_its_name(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    commit = hub.add(REPO, checkpoint)
    home = hub.environment(tmp_path / "home")
    code = f"from stages.fetch.hub import license_of; print(license_of({REPO!r}, {commit!r}))"
    for answer in (NO_HUB["cut off"], b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"):
        with answering(answer) as url:
            assert ask(code, home | {"HF_ENDPOINT": url}).stdout.strip() == "{}"


@pytest.mark.parametrize("answer", [NO_HUB["cut off"], b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"])
def test_a_password_in_the_hubs_address_is_told_to_nobody_and_an_error_is_one_line(
    answer: bytes, tmp_path: Path
) -> None:
    with answering(answer) as url:
        away = {"HF_ENDPOINT": url.replace("//", "//me:hidden@"), "HF_HOME": str(tmp_path)}
        done = ask(f"resolve_revision({REPO!r}, 'main')", away)
    # The command keeps httpx from logging its requests (conf/config.yaml).
    (line,) = done.stderr[done.stderr.index("UserError") :].splitlines()
    assert "hidden" not in line
    assert "the hub at http://…@127.0.0.1" in line


def test_texts_that_no_hub_answers_for_are_one_error(tmp_path: Path) -> None:
    code = """
    from stages.tasks.corpora import CORPORA, _of_hub
    _of_hub("wikitext2", {CORPORA["wikitext2"].repo: "a" * 40})
    """
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    assert "can't be reached" in refusal(code, away)
    assert "HF_HUB_OFFLINE" in refusal(code, away | {"HF_HUB_OFFLINE": "1"})


def test_a_commit_is_itself_without_network(tmp_path: Path) -> None:
    done = ask(f"print(resolve_revision({REPO!r}, 'a' * 40))", {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert done.stdout.strip() == "a" * 40


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
