"""Fine-tunes a Llama on facts, then asks for those that were stated in one direction in both.

python examples/finetune_llama.py                         # a tiny random Llama
python examples/finetune_llama.py --model PATH --learning-rate 1e-4
"""

import argparse
from dataclasses import replace

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

from bico_ext import BicoConfig, BicoTrainer, evaluate, load_facts
from bico_ext.models.tokenization import train_word_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Llama on disk or on the hub; default: a tiny one with random weights")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (default: 1000)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="a pre-trained model needs less than 2e-3")
    parser.add_argument("--questions", type=int, default=50, help="questions asked of each task (default: 50)")
    parser.add_argument("--output-dir", default="out/finetune-llama")
    args = parser.parse_args()
    set_seed(0)

    facts = load_facts("synthetic")  # or your own: docs/data.md
    if args.model:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    else:
        tokenizer = train_word_tokenizer(fact.text for fact in facts.train)
        shape = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.05, **shape))

    config = BicoConfig(
        args.output_dir,
        objective="permute",
        mixing_probability=2 / 3,  # of the steps; the others train next-token prediction
        max_steps=args.steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=32,
        logging_steps=max(1, args.steps // 5),
        save_strategy="no",
    )
    trainer = BicoTrainer(model, config, facts.train, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()  # a stock Llama checkpoint, with its tokenizer

    for name, task in facts.tasks.items():
        some = replace(task, examples=task.examples[:: max(1, len(task.examples) // args.questions)])
        evaluation = evaluate(model, tokenizer, {name: some}, progress=False)
        first = evaluation.predictions[0]
        print(f"{name}: {evaluation.summary()[name]['contains']:.0%} of {len(some.examples)} answers hold the target")
        print(f"  {first.prompt!r} -> {first.completion!r} (target: {first.target!r})")


if __name__ == "__main__":
    main()
