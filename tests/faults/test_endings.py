"""Whatever a command meets ends in a result or in one line: places it can't write, names that do things, faults."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import pipeline.__main__ as command
from helpers.processes import same_imports
from helpers.synthetic import add, everything
from helpers.tiny_tokenizer import byte_tokenizer
from pipeline.console.ending import FAULT, INTERRUPTED, WRONG, fault, status_of
from pipeline.console.lines import Line, LogFile
from pipeline.engine.disk import explain_disk_error
from stages.common.files import read_json, write_json
from stages.common.visible import visible
from stages.decoders.checkpoint import load_tokenizer
from stages.errors import UserError
from stages.report.render import files

HOSTILE = "a\x1b[2J\x07\x9b31m\u202etxt\r<script>alert(1)</script>[b](javascript:c)"
ACTIVE = ("\x1b", "\x07", "\x9b", "\u202e", "\r")


def test_a_fault_is_one_line_and_its_trace_is_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def faulty() -> int:
        raise KeyError("of nobody's\nmaking")

    assert status_of(faulty) == FAULT
    (line,) = capsys.readouterr().err.splitlines()
    assert "KeyError" in line
    assert "not a mistake of yours" in line
    trace = Path(line.rpartition(" ")[2])
    assert "in faulty" in trace.read_text()
    trace.unlink()


@pytest.mark.parametrize("writable", [True, False])
def test_a_trace_lies_beside_the_run_or_where_it_can(tmp_path: Path, writable: bool) -> None:
    (tmp_path / "file").touch()
    directory = tmp_path if writable else tmp_path / "file"
    trace = Path(fault(ValueError("x"), directory).rpartition(" ")[2])
    assert (trace.parent == tmp_path) is writable
    assert "ValueError: x" in trace.read_text()
    trace.unlink()


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UserError("mend\x1b it"), WRONG, "error: mend\\u001b it"),
        (KeyboardInterrupt(), INTERRUPTED, "stopped. What was finished is kept"),
        (OSError(errno.ENOSPC, "full", "/x"), WRONG, "error: no space left"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), WRONG, "error: Read-only file system"),
    ],
)
def test_an_ending_is_told_in_one_line(
    error: BaseException, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends() -> int:
        raise error

    assert status_of(ends) == status
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize("place", ["file/run", "n" * 300, "${y}", "/proc/nowhere"])
def test_a_run_directory_that_cannot_be_made_is_one_error(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # so that it is as before after the test
    monkeypatch.setattr(sys, "argv", ["pipeline", f"hydra.run.dir={place}"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == WRONG
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_a_plain_locale_shows_everything_and_refuses_only_what_it_cannot_name(tmp_path: Path) -> None:
    plain = same_imports() | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    start = [sys.executable, "-m", "pipeline", "--help"]
    place = os.fsencode(tmp_path) + "/é".encode()
    os.mkdir(place)
    here, there = (
        subprocess.run(start, cwd=at, env=plain, capture_output=True, text=True, encoding="utf-8")
        for at in (os.fsencode(tmp_path), place)
    )
    assert here.returncode == 0
    assert not here.stdout.isascii()
    assert "\\u" not in here.stdout
    assert there.returncode == WRONG
    (line,) = there.stderr.splitlines()
    assert "LC_ALL=C.UTF-8" in line


def test_a_file_that_grows_beyond_a_limit_is_told_like_a_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    found = []
    for write in (
        lambda path: path.write_bytes(bytes(1 << 20)),
        lambda path: save_file({"x": torch.zeros(1 << 18)}, path),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
        try:
            with pytest.raises(Exception) as raised:
                write(tmp_path / "file")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        found.append(explain_disk_error(raised.value, "building it"))
    assert all("ulimit -f" in str(error) for error in found)


def test_a_log_that_cannot_be_written_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = LogFile(tmp_path / "run.log")
    handler.setFormatter(Line())
    record = logging.makeLogRecord({"msg": HOSTILE})
    handler.emit(record)
    handler.stream.close()
    handler.emit(record)
    handler.emit(record)
    assert (tmp_path / "run.log").read_text() == visible(HOSTILE) + "\n"
    assert capsys.readouterr().err.count("run.log can't be written") == 1


def test_names_do_nothing_in_a_report(tmp_path: Path) -> None:
    inputs = everything(tmp_path / "inputs")
    add(tmp_path / "store", 0, inputs)
    (path,) = (tmp_path / "store" / "report").glob("*/report.json")
    text = path.read_text().replace(json.dumps(read_json(path)["model"]), json.dumps(HOSTILE))
    report = json.loads(text) | {"summary": f"{HOSTILE} is as good.", "caution": HOSTILE}
    found = files(report, {})
    assert json.loads(found["report.json"])["model"] == HOSTILE, "programs read the name as it is"
    for content in found.values():
        assert not any(character in content for character in ACTIVE)
    assert "<script>" not in found["report.html"]
    assert "<script>" not in found["report.md"].replace("\\<script>", "")
    assert "[b](" not in found["report.md"]


@pytest.mark.parametrize("known", [True, False])
def test_the_code_of_a_tokenizer_is_never_run(tmp_path: Path, known: bool) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    config = tmp_path / "tokenizer_config.json"
    asked = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    write_json(config, read_json(config) | asked | ({} if known else {"tokenizer_class": "Evil"}))
    if known:
        assert load_tokenizer(tmp_path)("true")["input_ids"]
    else:
        with pytest.raises(UserError, match=r"never run.*PreTrainedTokenizerFast"):
            load_tokenizer(tmp_path)
    assert not (tmp_path / "executed").exists()
    shutil.rmtree(tmp_path)
