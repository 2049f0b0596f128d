"""`python -m pipeline GROUP=OPTION KEY=VALUE …`: plan, run, report."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.console.ending import FAULT, STOPPED, fault, status_of
from pipeline.console.lines import say
from pipeline.execution import plan, run
from pipeline.schema.config import Action, Config, register
from pipeline.schema.overrides import asked_for_help, check_arguments
from stages.common.checks import short
from stages.common.visible import one_line
from stages.errors import UserError

log = logging.getLogger("pipeline")
TERMINATED = 128 + signal.SIGTERM
"""Exit status after a SIGTERM, as shells report it."""
FAILED: list[str] = []
"""The overrides of jobs that ended in an error: of a sweep, those of all its failed jobs."""
BEGUN: set[str] = set()
"""The configurations that jobs of this sweep have begun. Hydra multiplies an experiment's axes by the command line's
even where both name the same axis. One configuration may therefore come up several times."""


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def job(composed: DictConfig) -> None:
    """Run one configuration. Errors that a user can mend are printed without a traceback; a sweep then goes on."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if (once := OmegaConf.to_yaml(composed)) in BEGUN:
            return
        BEGUN.add(once)
        config = OmegaConf.to_object(composed)
        assert isinstance(config, Config)
        words = list(HydraConfig.get().overrides.task)
        if config.action is Action.plan:
            log.info("%s", plan(config, words))
        else:
            command = shlex.join(["python", "-m", "pipeline", *sys.argv[1:]])
            run(config, Path(HydraConfig.get().runtime.output_dir), command, words)
    except (UserError, OmegaConfBaseException) as error:
        # Hydra 1.3 leaves the log of a failing sweep job empty, so the error is logged here.
        log.error("error: %s", error)
        FAILED.append(HydraConfig.get().job.override_dirname)
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            raise SystemExit(1) from None
    except KeyboardInterrupt:
        log.error(STOPPED)
        raise SystemExit(128 + signal.SIGINT) from None
    except SystemExit as stop:
        if stop.code == TERMINATED:
            log.error(STOPPED)
        raise
    except Exception as error:
        log.error("%s", fault(error, Path(HydraConfig.get().runtime.output_dir)))
        raise SystemExit(FAULT) from None


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that half-written files are cleared away and trackers finish."""
    raise SystemExit(TERMINATED)


@contextmanager
def _nowhere(arguments: list[str]) -> Iterator[list[str]]:
    """Yield `arguments` so that Hydra makes no directory of a run, nor a log in it, where nothing is run."""
    word = f"action={Action.plan.name}"
    if word not in arguments or any(given.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for given in arguments):
        yield arguments
        return
    with TemporaryDirectory() as directory:
        # Beside the word itself, because overrides have to stand together.
        after = arguments.index(word) + 1
        places = [f"hydra.run.dir='{directory}'", f"hydra.sweep.dir='{directory}'"]
        yield [*arguments[:after], *places, *arguments[after:]]


def main() -> None:
    """Print the help where it is asked for. Otherwise check the command line, then hand it to Hydra."""
    if status := status_of(_command):
        raise SystemExit(status)


def _command() -> None:
    register()
    if (words := asked_for_help(sys.argv[1:])) is not None:
        from pipeline.schema.help import text  # only where it is asked for

        say(text(words))
        return
    check_arguments(sys.argv[1:])
    # Hydra then raises what it would print as a traceback.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with _nowhere(sys.argv[1:]) as arguments:
        sys.argv[1:] = arguments
        try:
            job()
        except OSError as error:
            raise UserError(
                f"the run's own directory can't be made ({error.strerror}: {short(error.filename, 200)}). "
                "Name another: hydra.run.dir=DIR, of a sweep hydra.sweep.dir=DIR."
            ) from error
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"the configuration can't be composed: {one_line(str(error))}") from error
    if FAILED:
        raise UserError(f"{len(FAILED)} of the sweep's jobs failed: {'; '.join(FAILED)}")


if __name__ == "__main__":
    main()
