"""LLaVA's two stages on the Hugging Face Trainer: ``python -m llava.train.train`` and its flags.

Projector alignment: ``--tune_mm_mlp_adapter True --version plain``. Instruction tuning:
``--version v1 --pretrain_mm_mlp_adapter ...``, whole or with ``--lora_enable True``. With
``--deepspeed scripts/train/zero2.json`` (or zero3.json) under ``deepspeed`` or ``torchrun``.
A run goes on from the last checkpoint in ``--output_dir``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers.integrations.deepspeed import (
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)
from transformers.trainer_utils import get_last_checkpoint

from . import parts
from .arguments import DataArguments, ModelArguments, TrainingArguments, refuse
from .conversations import Collator, Conversations
from .trainer import LlavaTrainer


@contextlib.contextmanager
def _whole_weights(args: TrainingArguments) -> Iterator[None]:
    """Under ZeRO-3 transformers would cut the weights up while reading them, which our loader of
    original checkpoints cannot do: read them whole, DeepSpeed cuts them when it starts."""
    config = getattr(args, "hf_deepspeed_config", None)
    if config is not None:
        unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)


def train(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> None:
    """Trains and writes ``output_dir``: a whole checkpoint, or the projector or adapter alone."""
    refuse(model_args, data_args, args)
    if not Path(data_args.data_path).is_file():
        raise FileNotFoundError(f"--data_path {data_args.data_path}: no such file")
    transformers.set_seed(args.seed)
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    # Master weights stay float32 unless DeepSpeed keeps them itself.
    with _whole_weights(args):
        tokenizer, model, processor = parts.load(
            model_args, dtype if args.deepspeed else torch.float32
        )
    model.config.image_aspect_ratio = data_args.image_aspect_ratio
    model.config.use_cache = False
    parts.freeze(model, model_args)
    if args.lora_enable:
        model = parts.with_lora(model, args)
    if args.gradient_checkpointing:
        model.enable_input_require_grads()
    data = Conversations(
        data_args.data_path, data_args.image_folder, tokenizer, processor, model.config,
        model_args.version, args.model_max_length,
    )  # fmt: skip
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    trainer = LlavaTrainer(
        model=model, args=args, train_dataset=data, data_collator=Collator(pad),
        processing_class=tokenizer,
    )  # fmt: skip
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_state()
    model.config.use_cache = True
    if model_args.tune_mm_mlp_adapter:
        _save_projector(trainer, args.output_dir)
    else:
        trainer.save_model(args.output_dir)
    if trainer.args.should_save:
        model.config.save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)


def _save_projector(trainer: LlavaTrainer, folder: str) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    projector = list(model.model.multi_modal_projector.parameters())
    if trainer.is_deepspeed_enabled:
        import deepspeed

        with deepspeed.zero.GatheredParameters(projector):
            state = {k: v.detach().clone() for k, v in parts.projector_state(model).items()}
    else:
        state = parts.projector_state(model)
    if trainer.args.should_save:
        parts.save_projector(state, folder)


def main() -> None:
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    train(*parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    main()
