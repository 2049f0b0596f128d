"""A list of `Masking` from the options, or from an llm-compressor recipe. No torch here.

A recipe is read here and not by llm-compressor, which skips everything that it does not recognise. There, a stage whose
key does not end in `_stage` runs nothing and says nothing. Here it is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from stages.common.choices import lookup, nearest
from stages.errors import UserError
from stages.prune.config import PruneConfig
from stages.prune.sparse.config import SparseMLConfig

ALGORITHMS = ("sparsegpt", "wanda", "magnitude")
MODIFIERS = {"SparseGPTModifier": "sparsegpt", "WandaPruningModifier": "wanda"}
"""The modifiers that a recipe may have, and their algorithms."""
QUANTISERS = ("Quantization", "GPTQ", "AWQ", "AutoRound", "SmoothQuant", "QuIP", "SpinQuant")
"""Parts of the names of llm-compressor's modifiers that quantise or prepare it."""
ARGUMENTS = ("sparsity", "mask_structure", "targets", "ignore", "block_size", "dampening_frac")
"""The arguments that a modifier of a recipe may have."""
IN_RECIPE = ("algorithm", "mask_structure", "targets", "block_size", "dampening")
"""Options that a recipe replaces."""
SHARED = ("method", "ratio", "layers", "calibration", "calibration_ids", "dtype", "seed")
"""Options of pruning in general that have a meaning for a mask."""
TOLERANCE = 0.005
"""Largest difference of a share from the share that was asked for."""
RECIPES = Path(__file__).parent / "recipes"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """One algorithm on some layers."""

    algorithm: str
    sparsity: float
    """Share of each targeted matrix to set to zero, in (0, 1)."""
    zeros: int = 0
    """N of N:M; 0 for a mask without structure."""
    of: int = 0
    """M of N:M."""
    targets: tuple[str, ...]
    ignore: tuple[str, ...] = ()
    block_size: int = 128
    dampening: float = 0.01

    @property
    def structure(self) -> str:
        """The mask structure N:M; "0:0" for zeros anywhere."""
        return f"{self.zeros}:{self.of}"


def check(config: SparseMLConfig) -> None:
    """Raise a `UserError` for an option that has no meaning for a mask, or for values that contradict each other."""
    defaults, given = PruneConfig(round_to=1), dataclasses.replace(config, round_to=config.multiple)
    names = [f.name for f in dataclasses.fields(PruneConfig) if f.name not in SHARED]
    foreign = [name for name in names if getattr(given, name) != getattr(defaults, name)]
    if foreign:
        raise UserError(
            f"prune=sparseml sets single weights to zero, and prune.{foreign[0]} is about groups of weights that are "
            f"removed. Leave it out, or choose a criterion that removes groups: prune=llmpruner."
        )
    ratio = config.ratio or 0.0
    if not 0 < ratio < 1:
        raise UserError(f"ratio must be in (0, 1), the share of the targeted weights to zero, and is {ratio}.")
    shares = {masking.sparsity for masking in maskings(config)}
    if len(shares) == 1:
        check_share(shares.pop(), ratio)


def check_share(asked: float, ratio: float) -> None:
    """Raise a `UserError` unless `asked`, the share that structure or recipe asks for, is `ratio`."""
    if abs(asked - ratio) > TOLERANCE:
        raise UserError(
            f"ratio={ratio:g} and prune=sparseml disagree: its mask structure or recipe sets {asked:.4g} of the "
            f"targeted weights to zero. Say ratio={asked:.4g}, or ask for another structure or recipe."
        )


def settled(config: SparseMLConfig) -> SparseMLConfig:
    """Return `config` with a recipe's content in place of its name or file."""
    return config if config.recipe is None else dataclasses.replace(config, recipe=_content(config.recipe))


def maskings(config: SparseMLConfig) -> list[Masking]:
    """Return the maskings that `config` asks for.

    Raises:
        UserError: the algorithm is unknown, or the structure is not N:M; or the recipe can't be read, is not of
            llm-compressor's form, quantises, or stands beside options that it replaces.
    """
    if config.recipe is not None:
        return _from_recipe(config)
    lookup("prune.algorithm", config.algorithm, dict.fromkeys(ALGORITHMS))
    given = {
        "sparsity": None,
        "mask_structure": config.mask_structure,
        "targets": config.targets,
        "block_size": config.block_size,
        "dampening_frac": config.dampening,
    }
    return [_masking(config.algorithm, given, config.ratio or 0.0, "prune")]


def table(config: SparseMLConfig) -> str:
    """Return the plan as text: the share that is set to zero, that no parameter goes, and the library that does it."""
    asked = maskings(config)
    lines = ["what is set to zero (the parameters and the shapes stay, and so does the time they take)"]
    for masking in asked:
        where = f"{masking.zeros} of every {masking.of} consecutive inputs" if masking.of else "anywhere in it"
        lines.append(f"  {masking.algorithm}: {masking.sparsity:.4g} of each of {', '.join(masking.targets)}, {where}")
    if any(masking.algorithm != "magnitude" for masking in asked):
        lines.append("  by llm-compressor, which SparseML's makers name as its successor (SparseML is end of life)")
    return "\n".join(lines)


def _from_recipe(config: SparseMLConfig) -> list[Masking]:
    defaults = SparseMLConfig()
    beside = [name for name in IN_RECIPE if getattr(config, name) != getattr(defaults, name)]
    if beside:
        raise UserError(f"prune.recipe says it all, and prune.{beside[0]} is given beside it. Leave one of them out.")
    found = [
        _masking(MODIFIERS[modifier], arguments, config.ratio or 0.0, f"prune.recipe: {modifier}")
        for modifier, arguments in _modifiers(_content(config.recipe))
    ]
    if not found:
        raise UserError(f"prune.recipe has no modifier, so nothing would be masked. Known: {', '.join(MODIFIERS)}.")
    return found


def _content(recipe: Any) -> dict[str, Any]:
    """Return a recipe's mapping: as given, or read from a file or from the built-in recipe of this name."""
    if isinstance(recipe, dict):
        return recipe
    known = {path.stem: path for path in RECIPES.glob("*.yaml")}
    path = known.get(str(recipe)) or Path(str(recipe)).expanduser()
    if not path.is_file():
        raise UserError(
            f"prune.recipe={recipe} is no file and no built-in recipe{nearest(str(recipe), known) or '.'} "
            f"Built in: {', '.join(sorted(known))}."
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"prune.recipe={recipe} is no YAML: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"prune.recipe={recipe} must hold stages ('NAME_stage:'), and holds no mapping.")
    return content


def _modifiers(recipe: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the arguments of each modifier, which is the third level: stage, group, modifier."""
    for stage, groups in _level(recipe, "_stage", "prune.recipe"):
        for group, modifiers in _level(groups, "_modifiers", f"prune.recipe: {stage}"):
            for name, arguments in _mapping(modifiers, f"prune.recipe: {group}").items():
                _check_modifier(name)
                yield name, _mapping(arguments or {}, f"prune.recipe: {name}")


def _level(content: Any, suffix: str, where: str) -> Iterator[tuple[str, Any]]:
    for key, value in _mapping(content, where).items():
        if not key.endswith(suffix):
            raise UserError(
                f"{where}: '{key}' does not end in '{suffix}', and llm-compressor would silently skip it. Rename it, "
                f"such as 'sparsity{suffix}'."
            )
        yield key, value


def _mapping(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{where} must hold names with values, and holds {content!r}.")
    return {str(name): value for name, value in content.items()}


def _check_modifier(name: str) -> None:
    if any(part in name for part in QUANTISERS):
        raise UserError(
            f"prune.recipe asks for quantisation ({name}), and pruning only sets weights to zero. Take it out, and "
            "quantise what comes out of the pipeline."
        )
    if name == "MagnitudePruningModifier":
        raise UserError(
            "prune.recipe: MagnitudePruningModifier is a schedule over training steps and changes nothing in one shot. "
            "For magnitude masks leave the recipe out: prune.algorithm=magnitude."
        )
    lookup("modifier in prune.recipe", name, MODIFIERS)


def _masking(algorithm: str, given: dict[str, Any], ratio: float, where: str) -> Masking:
    """Return the checked masking of one modifier's arguments; its sparsity is N/M or `ratio` where none is given."""
    for name in given:
        lookup(f"argument in {where}", name, dict.fromkeys(ARGUMENTS))
    zeros, of = _structure(str(given.get("mask_structure") or "0:0"), where)
    sparsity = given.get("sparsity")
    if sparsity is None:
        sparsity = zeros / of if of else ratio
    block_size, dampening = given.get("block_size", 128), given.get("dampening_frac", 0.01)
    _require(_number(sparsity) and 0 < sparsity < 1, f"{where}: sparsity", "one share in (0, 1)", sparsity)
    if of:
        rule = f"{zeros}/{of}, which {zeros}:{of} makes it"
        _require(abs(sparsity - zeros / of) <= TOLERANCE, f"{where}: sparsity", rule, sparsity)
    _require(type(block_size) is int and block_size >= 1, f"{where}: block_size", "at least 1", block_size)
    if of and algorithm == "sparsegpt":
        _require(block_size % of == 0, f"{where}: block_size", f"a multiple of {of}, the M of {zeros}:{of}", block_size)
    _require(_number(dampening) and dampening > 0, f"{where}: dampening", "above 0", dampening)
    targets = _names(given.get("targets", "Linear"), f"{where}: targets")
    _require(bool(targets), f"{where}: targets", "at least one linear layer", list(targets))
    return Masking(
        algorithm=algorithm,
        sparsity=float(sparsity),
        zeros=zeros,
        of=of,
        targets=targets,
        ignore=_names(given.get("ignore") or [], f"{where}: ignore"),
        block_size=block_size,
        dampening=float(dampening),
    )


def _structure(text: str, where: str) -> tuple[int, int]:
    parts = text.split(":")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    if len(parts) == 2 and len(numbers) == 2 and (numbers == [0, 0] or 0 < numbers[0] < numbers[1]):
        return numbers[0], numbers[1]
    raise UserError(
        f"{where}: mask_structure='{text}' must be N:M, N zeros in every M consecutive weights with 0 < N < M, such as "
        "2:4; or 0:0 for zeros anywhere."
    )


def _names(given: Any, where: str) -> tuple[str, ...]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where} must be names of layers, and is {given!r}.")
    return tuple(names)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(fulfilled: bool, field: str, rule: str, value: object) -> None:
    if not fulfilled:
        raise UserError(f"{field} must be {rule}, and is {value!r}.")
