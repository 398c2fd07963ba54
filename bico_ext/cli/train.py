"""`bico train`: fine-tune a model on facts, with or without LoRA adapters."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from bico_ext.cli.arguments import parse
from bico_ext.extras import install
from bico_ext.facts.loader import load_facts
from bico_ext.files import make_folder
from bico_ext.models import checkpoints
from bico_ext.training.complete_checkpoints import UNFINISHED, last_complete, unfinished_model
from bico_ext.training.config import BicoConfig
from bico_ext.training.failures import telling_how_to_resume
from bico_ext.training.lora import lora_config
from bico_ext.training.trainer import BicoTrainer


@dataclass
class TrainConfig:
    """Fine-tune a model on facts, with or without LoRA adapters.

    The options of the training itself are in `BicoConfig`.
    """

    data: str = field(
        metadata={
            "help": "'synthetic', 'invented', a folder of facts, a file (.jsonl, .txt, .csv or .tsv) or a hub name."
        }
    )
    model: str = field(metadata={"help": "The model to train: a path, a name of bico fetch-model or a hub name."})
    lora_r: int | None = field(
        default=None,
        metadata={"help": "Train LoRA adapters of this rank on all linear layers except lm_head. The paper uses 32."},
    )
    lora_alpha: int = field(default=16, metadata={"help": "Alpha of LoRA; the default is the paper's."})
    lora_dropout: float = field(default=0.01, metadata={"help": "Dropout of LoRA; the default is the paper's."})
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": f"Train the adapters on a base in 4 bits (QLoRA): {install('qlora')}"},
    )
    resume: bool = field(
        default=False, metadata={"help": "Continue from the newest complete checkpoint in output_dir."}
    )


def run(arguments: list[str]) -> None:
    config, args = parse("train", [TrainConfig, BicoConfig], arguments)
    if args.output_dir == "trainer_output":  # the default of transformers
        raise ValueError("output_dir is missing; add --output-dir OUT")
    folder = Path(args.output_dir)
    if folder.exists():
        make_folder(folder)  # fails now if it is a file or cannot be written to
    checkpoint = last_complete(folder) if config.resume else None  # which may get its name only now
    used = folder.exists() and any(path.name != UNFINISHED for path in folder.iterdir())
    if used and checkpoint is None and not (config.resume and unfinished_model(folder)):
        remedy = (
            " but no complete checkpoint to resume from; name"
            if config.resume
            else "; add --resume to continue, or name"
        )
        raise FileExistsError(f"output_dir {folder} already holds files{remedy} another folder")
    if config.resume and checkpoint is None:
        print(f"bico train: {folder} has no checkpoint, so training starts at the beginning", file=sys.stderr)
    facts = load_facts(config.data)
    adapters = None if config.lora_r is None else lora_config(config.lora_r, config.lora_alpha, config.lora_dropout)
    load_in_4bit = config.load_in_4bit or (checkpoint is not None and checkpoints.has_four_bit_base(checkpoint))
    if load_in_4bit and adapters is None:
        raise ValueError("load_in_4bit needs adapters, because weights of 4 bits cannot be trained; add --lora_r 32")
    # The trainer moves the model, or with FSDP only a part of it, which may be all that a device has room for.
    device = args.device if load_in_4bit else "cpu"
    model, tokenizer = checkpoints.load(config.model, load_in_4bit=load_in_4bit, device=device, merge_adapters=True)
    make_folder(folder)
    trainer = BicoTrainer(model, args, facts.train, processing_class=tokenizer, peft_config=adapters)
    process = f"process {args.process_index} of {args.world_size}" if args.world_size > 1 else "training"
    with telling_how_to_resume(process, folder):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or (checkpoint and str(checkpoint)))
        trainer.save_model()  # with the tokenizer
    if trainer.is_world_process_zero():
        print(f"The trained model is in {folder}. Evaluate it with:")
        print(f"  bico evaluate --model {folder} --data {config.data} --output-dir OUT")
