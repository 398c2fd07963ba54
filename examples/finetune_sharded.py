"""Fine-tunes all weights of a Llama that is sharded over several GPUs or processes (FSDP2).

torchrun --nproc_per_node 8 examples/finetune_sharded.py --model PATH --data DIR
"""

import argparse
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig

from bico_ext import BicoConfig, BicoTrainer, load_facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Llama on disk or on the hub")
    parser.add_argument("--data", default="synthetic", help="facts, as for bico train (default: synthetic)")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (default: 1000)")
    parser.add_argument("--batch-size", type=int, default=4, help="rows per process and step (default: 4)")
    parser.add_argument("--output-dir", default="out/finetune-sharded")
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if started := not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")

    # Each process reads and keeps its part of every weight, of its gradient and of the optimizer's state.
    sharding = DistributedConfig(fsdp_size=int(os.environ["WORLD_SIZE"]))
    model = AutoModelForCausalLM.from_pretrained(args.model, distributed_config=sharding, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    config = BicoConfig(
        args.output_dir,
        objective="bico",
        placeholder_id=0,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=2e-5,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=True,
        save_only_model=True,  # transformers cannot save the optimizer's state of a model that is sharded this way
        report_to="none",
    )
    trainer = BicoTrainer(model, config, load_facts(args.data).train, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()  # a stock Llama checkpoint, not sharded, with its tokenizer
    if started:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
