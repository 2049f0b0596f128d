"""Model directories of this machine: digests, links, conversions, and what is wrong with them."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from helpers.decoders import decoder
from stages.common.files import read_json
from stages.decoders.checkpoint import load_model
from stages.errors import UserError
from stages.model import weights
from stages.model.config import ModelSource
from stages.model.license import license_of
from stages.model.local import directory_digest
from stages.model.stage import run
from stages.model.weights import place
from stages.stage import Context


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    decoder().save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def load(directory: Path, tmp_path: Path, **options: bool) -> Path:
    """Run the stage on `directory`; return its artifact."""
    output = tmp_path / "artifact"
    output.mkdir(exist_ok=True)
    digest = directory_digest(directory, tmp_path / "cache")
    context = Context(output=output, cache=tmp_path / "cache", locations={"model": directory})
    run(ModelSource(kind="local", digest=digest, **options), {}, context)
    return output


def logits(directory: Path) -> torch.Tensor:
    return load_model(directory, dtype="float32")(torch.arange(1, 20)[None]).logits


def pickle_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Turn the weights of `directory` into a pickle; returns them."""
    state = decoder().state_dict()
    torch.save(state, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return state


def test_links_the_weights_and_needs_no_tokenizer(directory: Path, tmp_path: Path) -> None:
    model = load(directory, tmp_path) / "model"
    assert (model / "model.safetensors").readlink() == directory / "model.safetensors"
    assert not (model / "config.json").is_symlink()
    assert torch.equal(logits(model), logits(directory))
    load(directory, tmp_path)  # again over what a killed run left


def test_the_digest_is_of_contents_and_not_of_the_place(directory: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = directory_digest(directory, cache)
    (directory / "notes.md").write_text("nothing of the model")
    moved = directory.rename(tmp_path / "elsewhere")
    assert directory_digest(moved, cache) == first
    (moved / "tokenizer.json").write_text("{}")
    assert directory_digest(moved, cache) != first


def test_the_digest_of_a_big_file_is_remembered_until_it_changes(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.common.sealed.REMEMBERED_FROM", 1)
    file = directory / "model.safetensors"
    first = directory_digest(directory, tmp_path)
    state = file.stat()
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert directory_digest(directory, tmp_path) == first  # by size and time it is the same file
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert directory_digest(directory, tmp_path) != first


def test_a_directory_that_changed_after_the_plan_is_refused(directory: Path, tmp_path: Path) -> None:
    context = Context(output=tmp_path, cache=tmp_path, locations={"model": directory})
    with pytest.raises(UserError, match="has changed since"):
        run(ModelSource(kind="local", digest=64 * "0"), {}, context)


def test_says_what_a_directory_lacks(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a directory"):
        directory_digest(tmp_path / "nowhere", tmp_path)
    (directory / "model.safetensors").rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"has no weights\. Looked for: model\.safetensors"):
        directory_digest(directory, tmp_path)
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        directory_digest(directory, tmp_path)


@pytest.mark.parametrize("size", [4, 100, -1])
def test_truncated_weights_are_refused(directory: Path, tmp_path: Path, size: int) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="truncated"):
        load(directory, tmp_path)


def test_an_unknown_model_type_is_refused(directory: Path, tmp_path: Path) -> None:
    config = json.loads((directory / "config.json").read_text()) | {"model_type": "oracle"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="'oracle', which the installed transformers does not know"):
        load(directory, tmp_path)
    (directory / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "oracle.Oracle"}}))
    (directory / "oracle.py").write_text("raise SystemExit('run!')")
    with pytest.raises(UserError, match=r"model\.trust_remote_code=true"):
        load(directory, tmp_path)
    assert (load(directory, tmp_path, trust_remote_code=True) / "model" / "oracle.py").is_file()


def test_a_pickled_checkpoint_becomes_safetensors_shard_by_shard(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(directory)
    state = pickle_weights(directory)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save(state, directory / "pytorch_model.bin")
    monkeypatch.setattr(weights, "SHARD_BYTES", 30_000)
    model = load(directory, tmp_path) / "model"
    assert len(list(model.glob("model-*-of-*.safetensors"))) > 1
    assert not list(model.glob("*.bin"))
    assert torch.equal(logits(model), expected)


def test_tied_embeddings_stay_tied_and_shared_storage_is_no_obstacle(tmp_path: Path) -> None:
    tied = decoder(tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "mine")
    torch.save(tied.state_dict(), tmp_path / "mine" / "pytorch_model.bin")
    (tmp_path / "mine" / "model.safetensors").unlink()
    model = load(tmp_path / "mine", tmp_path) / "model"
    with safe_open(model / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    assert torch.equal(logits(model), tied(torch.arange(1, 20)[None]).logits)


def test_a_pickle_from_before_torch_1_6_is_read(directory: Path, tmp_path: Path) -> None:
    state = pickle_weights(directory)
    torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    place(directory, tmp_path / "placed")
    assert (tmp_path / "placed" / "model.safetensors").is_file()


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_executed(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle_weights(directory)
    content = {"w": torch.ones(2), "surprise": Malicious()}
    torch.save(content, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="holds more than tensors"):
        place(directory, tmp_path / "placed")
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(UserError):
        place(directory, tmp_path / "placed")
    assert not (tmp_path / "executed").exists()


def test_a_truncated_pickle_is_named(directory: Path, tmp_path: Path) -> None:
    pickle_weights(directory)
    file = directory / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        place(directory, tmp_path / "placed")


def test_the_license_that_the_models_card_names_is_recorded_and_the_card_stays_behind(
    directory: Path, tmp_path: Path
) -> None:
    (directory / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# A model of other weights\n")
    artifact = load(directory, tmp_path)
    assert read_json(artifact / "origin.json")["license"] == "mit"
    assert not (artifact / "model" / "README.md").exists()
    for unreadable in ("", "---\nlicense: [\n---\n", "# no front matter"):
        (directory / "README.md").write_text(unreadable)
        assert license_of(directory) == {}
