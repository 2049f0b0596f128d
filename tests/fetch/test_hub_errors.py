"""A hub that refuses, is away, breaks off or never answers, and what is no hub: one error each, or what is cached."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.hubcalls import REPO, ask, fetching, refusal, write_repository
from helpers.hubserver import TOKEN, Hub
from helpers.serving import answering, silent

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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "repository")


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
    with silent() as url:
        waiting = home | {"HF_ENDPOINT": url, "HF_HUB_ETAG_TIMEOUT": "1"}
        done = ask(f"print(download({REPO!r}, resolve_revision({REPO!r}, 'main')))", waiting)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("out of reach") == 2
        assert "can't be reached" in refusal("resolve_revision('someone/else', 'main')", waiting)
        assert "can't be reached" in refusal(f"download({REPO!r}, 'b' * 40)", waiting)


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
