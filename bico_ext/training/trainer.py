"""`BicoTrainer`: transformers' Trainer, where each optimizer step trains an objective or next-token prediction.

The data loader returns rows unchanged. `get_batch_samples` chooses the objective of a step and applies it to every row.
The Trainer calls this method once per step; the method also counts the labels that scale the loss. Random seeds are
hashes of the run's seed, the step and the row's index in the dataset (`stream_seed`). They therefore do not depend on
how a step is split into micro-batches and processes, and a resumed run needs no saved state.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object  # type: ignore[import-untyped]
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, TrainOutput

from bico_ext.files import expand_user
from bico_ext.models.attach import attach, check_attached
from bico_ext.models.checkpoints import UNTRUSTED, any_generation_config, mark_four_bit
from bico_ext.models.tokenization import padding_id
from bico_ext.objectives import registry
from bico_ext.objectives.build import build_objective, special_ids
from bico_ext.objectives.training_sequence import NO_LOSS, labelled_only, pack, pad, predict_only
from bico_ext.seeding import happens, stream_seed
from bico_ext.training.complete_checkpoints import CompleteCheckpoints
from bico_ext.training.config import BicoConfig
from bico_ext.training.dataset import LengthGroupedSampler, RowEncoder, Rows
from bico_ext.training.resume_record import resume_record

if TYPE_CHECKING:
    from peft import PeftConfig


class BicoTrainer(CompleteCheckpoints):
    """Fine-tune a causal RoPE language model in both directions with split-triangle attention.

    The model is attached in place (`bico_ext.models.attach`); its checkpoints are stock checkpoints. All micro-batches
    of an optimizer step train the same objective. Gradient accumulation and several processes change the result only by
    rounding, as long as the rows fill every batch. A run that is resumed at step k is bit-identical to the
    uninterrupted run.

    In addition to the Trainer's own metrics it logs `loss_<objective>`, the mean over the steps since the last log that
    trained this objective (absent if no step did). `evaluate` returns `eval_loss` (next-token prediction) and
    `eval_<objective>_loss`. Both are means over tokens; what the objective hides depends only on the row's index in the
    dataset.

    With `train_sampling_strategy="group_by_length"`, batches of similar lengths come in random order, which is
    resumable. The stock sampler sorts them by decreasing length. No length column is needed.

    Args:
        model: the model, or a name or path for `AutoModelForCausalLM.from_pretrained`. A model that is loaded by name
            has fp32 weights for the optimizer; `bf16=True` still computes in bf16.
        args: the training arguments; default `BicoConfig()`.
        train_dataset: a list, tuple, torch Dataset or datasets.Dataset of known length; or, with `max_steps`, a stream,
            such as an IterableDataset of torch or datasets, whose rows are trained in their order. The rows are dicts
            with `input_ids`, or `prompt` and `completion`, or `text`, or `messages`, or objects with the attributes
            `prompt` and `completion`. Text is encoded by `bico_ext.models.tokenization.encode_text`, messages by the
            tokenizer's chat template; `input_ids` (a list, tensor or NumPy array of integers) are used unchanged. The
            loss covers the whole row.
        eval_dataset: a dataset like `train_dataset` with a length, or a dict of such datasets.
        processing_class: the tokenizer; default: loaded from `model` if that is a name or path.
        compute_metrics: as for Trainer; it gets the next-token predictions.
        callbacks: as for Trainer.
        optimizers: as for Trainer.
        preprocess_logits_for_metrics: as for Trainer.
        peft_config: a PEFT configuration to wrap the model with, for example `peft.LoraConfig(task_type="CAUSAL_LM")`.

    Raises:
        TypeError: args is of another class, a stream can be read only once, a dataset for evaluation has no length, or
            the model cannot be attached.
        ValueError: the device has no kernels; a dataset is empty; a row has nothing to predict, has ids that the model
            lacks, is longer than the model's context or has a column that would have no effect (the message names the
            row); rows are text and there is no tokenizer; rows are messages and there is no chat template; there is no
            placeholder; or packing is on and the process trains on several GPUs.

    Example:
        >>> rows = [{"text": "Ada Lovelace wrote the first program."}]
        >>> trainer = BicoTrainer("path/to/llama", BicoConfig("out", max_steps=10), rows)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    args: BicoConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: BicoConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        peft_config: "PeftConfig | None" = None,
    ) -> None:
        # Args
        args = BicoConfig() if args is None else args
        if not isinstance(args, BicoConfig):
            raise TypeError(f"args must be a BicoConfig, got {type(args).__name__}; it has the same fields and more")
        if args.packing and args.n_gpu > 1:
            raise ValueError(
                f"packing=True makes one row of a micro-batch, which DataParallel cannot divide among {args.n_gpu} "
                "GPUs; start one process per GPU with torchrun, or make only one visible with CUDA_VISIBLE_DEVICES=0"
            )

        # Model and tokenizer
        if isinstance(model, str):
            model = expand_user(model)
            if processing_class is None:
                processing_class = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **UNTRUSTED)
        if not isinstance(model, nn.Module) or not hasattr(model, "config"):
            raise TypeError(f"model must be a transformers model, or its name or path, got {type(model).__name__}")
        network: Any = model

        # Objective
        self._objective = "ntp"  # of the current optimizer step
        self._generator = Generator()
        self._pad_id = padding_id(network, processing_class)

        # Logging
        self._loss_sums: dict[str, Tensor] = {}
        self._step_counts: Counter[str] = Counter()
        self._row_losses: dict[str, dict[int, tuple[float, int]]] = {}

        # Data
        has_specials = "special_ids" in registry.option_names(args.objective)
        never_predicted = special_ids(network, processing_class) if has_specials else frozenset()
        self._encode = RowEncoder(
            network,
            processing_class,
            args.max_length,
            never_predicted,
            last_predicted=args.objective != "bert",
            windows=args.long_rows == "windows",
            assistant_only=args.assistant_only_loss,
        )
        if hasattr(train_dataset, "__iter__") and not hasattr(train_dataset, "__len__"):
            if args.train_sampling_strategy == "group_by_length":
                raise ValueError("train_sampling_strategy='group_by_length' needs a train_dataset with a length")
            train_dataset = self._encode.stream(train_dataset, "train_dataset", args.max_steps)
            # Each process reads the stream itself: accelerate's dispatcher would cut a batch that it takes for a dict.
            cast(Any, args.accelerator_config).dispatch_batches = False
        elif train_dataset is not None:
            train_dataset = self._encode(train_dataset, "train_dataset")
        if isinstance(eval_dataset, Mapping):
            eval_dataset = {name: self._encode(rows, f"eval_dataset[{name!r}]") for name, rows in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._encode(eval_dataset, "eval_dataset")

        # The model changes only here, after everything else has been checked. Some objectives add a token.
        vocabulary = len(network.get_input_embeddings().weight)
        self._objectives = {
            name: build_objective(name, args, network, processing_class) for name in ("ntp", args.objective)
        }
        if peft_config is not None:
            if len(network.get_input_embeddings().weight) > vocabulary:
                raise ValueError(
                    f"objective={args.objective!r} added tokens to the model, which adapters would neither train nor "
                    "save; add them first (bico_ext.models.special_tokens.added_tokens), save the model and the "
                    "tokenizer, and start from those"
                )
            from peft import get_peft_model

            network = get_peft_model(network, peft_config)
        attach(network)

        super().__init__(
            model=network,
            args=args,
            data_collator=Rows.collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if train_dataset is not None:
            # The first process decides, because with FSDP it alone may have the weights.
            (self._trained_with,) = broadcast_object_list([resume_record(args, network, train_dataset)])

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer.train`, after a check that the model is still attached.

        Raises:
            OSError: a checkpoint cannot be written; the message names the last complete one.
            RuntimeError: the model is not attached. A stock model would silently ignore the span ids.
            ValueError: `resume_from_checkpoint` is not complete, or was trained with something else (the message lists
                the differences); or it is True and there is no complete checkpoint.
        """
        check_attached(cast(nn.Module, self.model))
        self._loss_sums.clear()
        self._step_counts.clear()
        return super().train(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Rows], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | int | None]:
        """Return the micro-batches of one optimizer step, made by its objective, and the number of labels in them."""
        args, step = self.args, self.state.global_step
        if 0 < self.state.max_steps <= step:  # resumed after the last step, where the Trainer would make another one
            self.control.should_training_stop = True
            return [], None
        trains_objective = happens(args.mixing_probability, "objective", args.seed, step)
        self._objective = args.objective if trains_objective else "ntp"
        batches = [
            self._batch(rows, self._objective, "masks", args.seed, step, packed=args.packing)
            for rows in islice(epoch_iterator, num_batches)
        ]
        self._step_counts[self._objective] += bool(batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Trainer.training_step`; also add the loss to the sum of its objective, without a synchronisation."""
        loss = super().training_step(*args, **kwargs)
        self._loss_sums[self._objective] = self._loss_sums.get(self._objective, 0) + loss
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`, with `loss_<objective>` added to the training loss."""
        if "loss" in logs:
            for objective, total in sorted(self._loss_sums.items()):
                mean_over_ranks = self.accelerator.gather(total).mean().item()
                logs[f"loss_{objective}"] = mean_over_ranks / self._step_counts[objective]
            self._loss_sums.clear()
            self._step_counts.clear()
        super().log(logs, start_time)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As `Trainer.get_eval_dataloader`, for any dataset that `BicoTrainer` accepts."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._encode(eval_dataset, "eval_dataset")
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As `Trainer.get_test_dataloader`, for any dataset that `BicoTrainer` accepts."""
        return super().get_test_dataloader(cast(Any, self._encode(test_dataset, "test_dataset")))

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As `Trainer.evaluation_loop`, but losses are means over all tokens for any batch size and number of ranks."""
        self._row_losses = {objective: {} for objective in self._objectives}
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        for part in gather_object([self._row_losses]):
            for objective, losses in part.items():
                self._row_losses[objective].update(losses)  # a row that two ranks evaluated counts once
        for objective, losses in self._row_losses.items():
            total, tokens = (sum(column) for column in zip(*losses.values(), strict=True))
            name = "loss" if objective == "ntp" else f"{objective}_loss"
            cast(dict, output.metrics)[f"{metric_key_prefix}_{name}"] = total / tokens
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,  # Rows
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """As `Trainer.prediction_step` for next-token prediction; also store each row's loss under every objective."""
        causal = self._batch(inputs, "ntp", all_outputs=not prediction_loss_only)
        loss, logits, labels = super().prediction_step(model, causal, False, ignore_keys)
        self._keep_row_losses("ntp", inputs, causal, logits[0] if isinstance(logits, tuple) else logits)
        if self.args.objective != "ntp":
            batch = self._batch(inputs, self.args.objective, "evaluation masks")
            unlabelled = {name: value for name, value in batch.items() if name != "labels"}
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**self._prepare_inputs(unlabelled))
            self._keep_row_losses(self.args.objective, inputs, batch, outputs.logits)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`; saves a model whole, also one whose checkpoints FSDP writes in parts.

        For such a model the Trainer would save nothing.
        """
        fsdp = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if fsdp is not None and "SHARDED" in str(fsdp.state_dict_type) and not _internal_call:
            self._save(output_dir, self.accelerator.get_state_dict(self.model))
        super().save_model(output_dir, _internal_call)

    def _write(self, folder: Path, state_dict: Any) -> None:
        with any_generation_config(cast(nn.Module, self.model), folder):
            super()._write(folder, state_dict)
        if getattr(self.model, "is_loaded_in_4bit", False):
            mark_four_bit(folder)

    def _batch(
        self, rows: Rows, objective: str, *key: int | str, all_outputs: bool = False, packed: bool = False
    ) -> dict[str, Any]:
        """Apply an objective to rows and pad or pack them; a row's seed depends on `key` and its index in the dataset.

        The model then computes logits only where there are labels, unless `all_outputs` are wanted. DataParallel cuts
        a batch into rows, which flat positions would not survive.
        """
        apply = self._objectives[objective]
        sequences = []
        for input_ids, index, predicted in zip(rows.input_ids, rows.indices, rows.predicted, strict=True):
            generator = self._generator.manual_seed(stream_seed(*key, index))
            sequences.append(
                apply(input_ids, generator)
                if predicted is None
                else predict_only(apply, input_ids, predicted, generator)
            )
        batch = pack(sequences) if packed else pad(sequences, self._pad_id)
        return batch if all_outputs or self.args.n_gpu > 1 else labelled_only(batch)

    def _keep_row_losses(self, objective: str, rows: Rows, batch: dict[str, Any], logits: Any) -> None:
        """Store the summed loss and the number of labels of each row, from logits for all of the batch's outputs."""
        count, length = batch["input_ids"].shape
        labels = batch["labels"][:, 1:].flatten()
        outputs = batch.get("output_positions", torch.arange(count * length)).view(batch["labels"].shape)[:, :-1]
        losses = cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels.to(logits.device), reduction="none", ignore_index=NO_LOSS
        )
        row = outputs.flatten() // length  # of each loss
        totals = torch.zeros(count, dtype=torch.float64).index_add(0, row, losses.double().cpu())
        tokens = torch.zeros(count, dtype=torch.int64).index_add(0, row, labels.ne(NO_LOSS).long())
        self._row_losses[objective].update(
            zip(rows.indices, zip(totals.tolist(), tokens.tolist(), strict=True), strict=True)
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = cast(list, self.train_dataset if train_dataset is None else train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedSampler([len(row["input_ids"]) for row in rows], batch_size, seed)
