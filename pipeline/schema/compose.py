"""`compose`: the configuration that overrides describe, without starting Hydra's application."""

from __future__ import annotations

from hydra import compose as composed
from hydra import initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.schema.config import Config, register
from pipeline.schema.overrides import check_arguments, check_single
from stages.errors import UserError


def compose(*overrides: str) -> Config:
    """Return the configuration that `overrides` describe. They are written as on the command line: "ratio=0.3".

    Raises:
        UserError: an override can't be parsed, names something unknown, has a value of another type or is a sweep.
    """
    register()
    check_arguments(list(overrides))
    check_single(list(overrides))
    try:
        with initialize_config_module("conf", version_base="1.3"):
            config = OmegaConf.to_object(composed("config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        # Hydra's message names the override; its cause says what is wrong with it.
        said = [str(error), str(error.__cause__ or "")]
        raise UserError(": ".join(text.splitlines()[0].rstrip(".") for text in said if text) + ".") from None
    assert isinstance(config, Config)
    return config
