"""Configurations as the command line makes them."""

from __future__ import annotations

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from pipeline.planning.build import build_graph, preview_prune
from pipeline.schema.config import Config, register
from pipeline.schema.overrides import check_arguments


def configuration(*overrides: str) -> Config:
    """Return the configuration that a command line describes."""
    register()
    check_arguments(list(overrides))
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides=list(overrides)))
    assert isinstance(config, Config)
    return config


def planned(*overrides: str) -> Config:
    """Return the configuration after everything that is checked before a run starts."""
    config = configuration(*overrides)
    preview_prune(build_graph(config), config, None)
    return config
