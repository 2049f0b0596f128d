"""`recover_model`: a live model recovered by the recover stage's own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.live.models import base_of, check_model, check_tokenizer, precision_of, record_of
from pipeline.live.options import configured
from pipeline.live.rows import as_rows, set_aside
from pipeline.planning.keys import derive_seed
from pipeline.planning.settled import cache_directory, recovery_of
from stages.common.files import write_jsonl
from stages.decoders.copies import copy_of
from stages.decoders.quantised import hold
from stages.decoders.shapes import shape_in
from stages.errors import UserError
from stages.recover import memory
from stages.recover.config import RecoverStageConfig
from stages.recover.objectives.teacher import check_sizes
from stages.recover.plan import adapter_of, gives_model, taught
from stages.recover.stage import Material, trained
from stages.stage import Context

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@memory.explained()
def recover_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    *,
    adapter: str | Mapping[str, Any] = "best",
    teacher: PreTrainedModel | None = None,
    validation: Any = None,
    **options: Any,
) -> PreTrainedModel:
    """Return the model trained on `rows`, with its adapter merged into it. The given models are left as they are.

    With a teacher the objective is distillation, unless `objective` says otherwise. An adapter that is not merged
    (prefix, series, parallel; or merge=False) stays attached to the new model. The new model has the given model's
    precision, device and, where there is one, attribute `pruning`. Its attribute `recovery` holds what `recovery.json`
    holds, and under "history" the points of the curve. While it trains, memory holds one copy of the model in the
    training's precision, and one of a teacher that has another precision.

    Args:
        model: the model to recover. Weights that `prune_model` has masked to zero stay zero.
        tokenizer: the model's tokenizer.
        rows: strings, or rows with prompt and response.
        adapter: a name of conf/adapter, or a dictionary with the name and options: {"name": "best", "rank": 32}.
        teacher: the dense model, with the same vocabulary.
        validation: rows that the curve is measured on. Without any, a tenth of the rows is set aside, 256 at most.
        options: options of the command line by their names without "recover.", such as tokens=300_000 or
            learning_rate=1e-3.

    Raises:
        UserError: an option is unknown or outside its range, there are too few rows, or memory is too small.
        Diverged: the loss is not finite.
    """
    check_model(model)
    if teacher is not None:
        check_model(teacher, "teacher")
        check_sizes(teacher.config, model.config)
    config, cache = _config(adapter, options, teacher, model.device.type)
    train, held_out = as_rows(rows, "rows"), validation
    if validation is None:
        train, held_out = set_aside(train, derive_seed(0, "data"))
    masked = frozenset(record_of(model).get("masks") or ())
    with TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "train.jsonl", train)
        material = Material(
            load=lambda dtype: hold(copy_of(model, dtype=dtype), config.recover.base, str(model.device)),
            tokenizer=check_tokenizer(tokenizer),
            train=Path(folder) / "train.jsonl",
            held_out=as_rows(held_out, "validation"),
            masked=masked,
            teacher=teacher if taught(config) else None,
            shape=shape_in(model.config.to_dict()),
            base=base_of(model),
            taught_by={} if teacher is None else base_of(teacher),
        )
        context = Context(output=Path(folder), device=str(model.device), cache=cache)
        adapted, summary, history = trained(config, material, context)
        made = _recovered(model, adapted, config, Path(folder) / "adapter", masked)
    made.recovery = summary | {"history": history}
    if record_of(model):
        made.pruning = record_of(model)
    return made


def _recovered(
    model: PreTrainedModel, adapted: Module, config: RecoverStageConfig, folder: Path, masked: frozenset[str]
) -> PreTrainedModel:
    """Return the new model: the trained model itself, or a copy of `model` with the adapter merged or attached."""
    adapter, stored = adapter_of(config), precision_of(model)
    if adapter.trained is not None:
        return copy_of(adapter.trained(adapted, stored), dtype=stored, config=model.config, shared=True)
    assert adapter.save is not None
    assert adapter.load is not None
    adapter.save(adapted, folder)
    base = copy_of(model, dtype=stored)
    if adapter.merge is not None and gives_model(config):
        return adapter.merge(base, folder, masked).requires_grad_(True).eval()  # type: ignore[no-any-return]
    adapter.load(base, folder, masked)
    # transformers would write the adapter's parameters under names that no stock model reads, without a word.
    base.save_pretrained = _refuse_to_save
    return base.eval()  # type: ignore[no-any-return]


def _refuse_to_save(*arguments: Any, **options: Any) -> NoReturn:
    raise UserError(
        "this model has its adapter attached, and save_pretrained would write what loads as another model. Recover "
        "with an adapter that is merged (adapter='rora'), or by pipeline.run, which keeps both as artifacts."
    )


def _config(
    adapter: str | Mapping[str, Any], options: Mapping[str, Any], teacher: PreTrainedModel | None, device: str
) -> tuple[RecoverStageConfig, Path]:
    """Return the options as the recover stage takes them, and the directory of the cache."""
    own = {"name": adapter} if isinstance(adapter, str) else dict(adapter)
    name = own.pop("name", None)
    if name in (None, "none"):
        raise UserError(
            "adapter needs the name of one that recovers: adapter='rora', or with options {'name': 'rora', …}."
        )
    options = {"objective": "cross_entropy" if teacher is None else "distillation", **options}
    config = configured(f"adapter={name}", adapter=own, recover=options)
    recovery = recovery_of(config, device)
    assert recovery is not None, "an adapter that recovers"
    if taught(recovery) and teacher is None:
        raise UserError(f"objective={config.recover.objective!r} needs a teacher: give the dense model as teacher=.")
    return recovery, cache_directory(config)
