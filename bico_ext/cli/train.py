"""`bico train`: fine-tune a model on facts, with or without LoRA adapters."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from transformers.trainer_utils import get_last_checkpoint

from bico_ext.cli.arguments import parse
from bico_ext.facts.loader import load_facts
from bico_ext.models import checkpoints
from bico_ext.training.config import BicoConfig
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
        metadata={"help": 'Train the adapters on a base in 4 bits (QLoRA): pip install "bico-ext[qlora]".'},
    )
    resume: bool = field(default=False, metadata={"help": "Continue from the newest checkpoint in output_dir."})


def run(arguments: list[str]) -> None:
    config, args = parse("train", [TrainConfig, BicoConfig], arguments)
    if args.output_dir == "trainer_output":  # the default of transformers
        raise ValueError("output_dir is missing; add --output-dir OUT")
    folder = Path(args.output_dir)
    used = folder.exists() and any(folder.iterdir())
    checkpoint = _last_checkpoint(folder) if used and config.resume else None
    if used and checkpoint is None:
        remedy = " but no checkpoint to resume from; name" if config.resume else "; add --resume to continue, or name"
        raise FileExistsError(f"output_dir {folder} already holds files{remedy} another folder")
    facts = load_facts(config.data)
    adapters = None if config.lora_r is None else lora_config(config.lora_r, config.lora_alpha, config.lora_dropout)
    load_in_4bit = config.load_in_4bit or (checkpoint is not None and checkpoints.has_four_bit_base(checkpoint))
    if load_in_4bit and adapters is None:
        raise ValueError("load_in_4bit needs adapters, because weights of 4 bits cannot be trained; add --lora_r 32")
    # The trainer moves the model, or with FSDP only a part of it, which may be all that a device has room for.
    device = args.device if load_in_4bit else "cpu"
    model, tokenizer = checkpoints.load(config.model, load_in_4bit=load_in_4bit, device=device, merge_adapters=True)
    trainer = BicoTrainer(model, args, facts.train, processing_class=tokenizer, peft_config=adapters)
    process = f"process {args.process_index} of {args.world_size}" if args.world_size > 1 else "training"
    with telling_how_to_resume(process, folder):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or checkpoint)
        trainer.save_model()  # with the tokenizer
    if trainer.is_world_process_zero():
        print(f"The trained model is in {folder}. Evaluate it with:")
        print(f"  bico evaluate --model {folder} --data {config.data} --output-dir OUT")


def _last_checkpoint(folder: Path) -> str | None:
    return get_last_checkpoint(str(folder)) if folder.exists() else None


@contextmanager
def telling_how_to_resume(process: str, folder: Path) -> Iterator[None]:
    """If training fails, or SIGTERM ends it, write to stderr where the last checkpoint is and how to go on.

    torchrun ends all processes with SIGTERM when one of them has failed or was killed. At that time the others usually
    wait for it inside a collective operation, where Python would not run a handler. So a thread waits for the signal.
    """

    def tell(what: str) -> None:
        checkpoint = _last_checkpoint(folder)
        remedy = (
            f"the last checkpoint is {checkpoint}; start the same command again with --resume"
            if checkpoint
            else "there is no checkpoint yet, so start again; --save_steps says how often one is saved"
        )
        print(f"bico train: {process} {what}; {remedy}", file=sys.stderr, flush=True)

    def ignore(*_: object) -> None:
        """Make Python note the signal in the pipe. A later handler, as of `enable_jit_checkpoint`, takes over."""

    def wait_for_end() -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is ignore:
                tell("was ended by SIGTERM")
                os._exit(128 + signal.SIGTERM)
        os.close(reading)

    def forget_in_child() -> None:  # a worker of the data loader ends by SIGTERM, and its parent does not
        if signal.getsignal(signal.SIGTERM) is ignore:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    handler = signal.signal(signal.SIGTERM, ignore)
    earlier = signal.set_wakeup_fd(writing)
    os.register_at_fork(after_in_child=forget_in_child)
    Thread(target=wait_for_end, daemon=True).start()
    try:
        yield
    except Exception:
        tell("failed")
        raise
    finally:
        signal.set_wakeup_fd(earlier)
        signal.signal(signal.SIGTERM, handler)
        os.close(writing)  # ends the thread
