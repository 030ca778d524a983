"""Two processes on halves of every batch take the steps of one on the whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isae_cli.app import main
from sae_lens_isae.errors import InputError
from sae_lens_isae.training.data_parallel import together
from sae_lens_isae.training.seeds import seeds_of_runs
from tests.conftest import D_IN, D_SAE, K
from tests.forked import ForkedCommand
from tests.training import rank_worker
from tests.training.test_recovery import checkpoints, runner_config, train_arguments, weights

ROOT = Path(__file__).parents[2]
VARIANTS = [
    "TopK",
    "iSAE",
    "iSAE-ME",
    "iSAE-ME full",
    "iSAE-LS",
    "regularized_topk",
    "regularized_jumprelu",
]


def environments(n=2):
    """Of the processes that torchrun would start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]


def ranks(arguments, n=2):
    """`isae` as torchrun would start it."""
    return [ForkedCommand(arguments, ROOT, **env) for env in environments(n)]


def ended(processes, timeout=180):
    """Exit codes and what was said."""
    said = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], said


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights after 1 and 50 steps, by steps and variant, of both ranks."""
    return trained_by_two(tmp_path_factory.mktemp("ranks"), (1, 50), "cpu")


def trained_by_two(folder, n_steps, device):
    worker = [sys.executable, "-m", "tests.training.rank_worker", str(folder)]
    steps = ",".join(map(str, n_steps))
    processes = [
        subprocess.Popen(
            [*worker, steps, device, *VARIANTS],
            env={**os.environ, **env},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for env in environments()
    ]
    codes, said = ended(processes)
    assert codes == [0, 0], said
    return {
        (n, variant): [load_file(folder / f"{variant}_{n}_{rank}.safetensors") for rank in range(2)]
        for n in n_steps
        for variant in VARIANTS
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("n_steps", "tolerance"), [(1, 1e-6), (50, 1e-4)])
def test_two_processes_do_what_one_does(trained, variant, n_steps, tolerance):
    alone = rank_worker.train(variant, n_steps)
    for found in trained[n_steps, variant]:
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            torch.testing.assert_close(
                found[name], expected, rtol=tolerance, atol=tolerance, msg=name
            )


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_do_what_one_does(tmp_path):
    for (_, variant), both in trained_by_two(tmp_path, (50,), "cuda").items():
        alone = rank_worker.train(variant, 50, "cuda")
        for found in both:
            for name, expected in alone.items():
                torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-3, msg=name)


def test_the_test_sees_steps_that_differ(trained):
    """Its tolerance is far below what a step changes."""
    one, many = (trained[n, "iSAE-ME"][0] for n in (1, 50))
    assert (one["W_dec"] - many["W_dec"]).abs().max() > 0.01
    start = rank_worker.make_sae(rank_worker.config("iSAE-ME"))
    assert (one["W_dec"] - start.W_dec).abs().max() > 1e-4


def arguments_of_ranks(tiny_model, folder, *flags, n_steps=30, **changes):
    settings = {
        "n_batches_for_norm_estimate": 2,
        "exclude_special_tokens": True,
        "lr": 0.003,
        "n_checkpoints": 2,
        "sae": {
            "architecture": "isae",
            "d_in": D_IN,
            "d_sae": D_SAE,
            "k": K,
            "normalize_activations": "expected_average_only_in",
        },
        **changes,
    }
    # of an option that is given twice the last counts
    flags = ("--eval-batches", 1, "--keep-activations", 50, *flags)
    return [*train_arguments(tiny_model, folder, n_steps, **settings), *map(str, flags)]


@pytest.mark.slow
def test_a_run_of_two_is_resumed_by_one(tiny_model, tmp_path):
    codes, said = ended(ranks(arguments_of_ranks(tiny_model, tmp_path / "two")))
    assert codes == [0, 0], said
    assert "SAELens run_evals" in said[0][0]
    assert said[1][0] == ""
    whole = weights(tmp_path / "two" / "out")
    name = "sae_weights.safetensors:W_dec"
    assert {name, "activations.safetensors:activations"} <= whole.keys()
    first = sorted(set(checkpoints(tmp_path / "two")))[0]
    command = arguments_of_ranks(tiny_model, tmp_path / "one", "--resume_from_checkpoint", first)
    with (
        pytest.warns(UserWarning, match="was written by 2 processes and goes on in 1"),
        pytest.raises(SystemExit) as stop,
    ):
        main(list(map(str, command)))
    assert stop.value.code == 0
    difference = (weights(tmp_path / "one" / "out")[name] - whole[name]).abs()
    assert 0 < difference.max() < 0.5


@pytest.mark.slow
def test_a_run_of_two_is_resumed_by_two(tiny_model, tmp_path):
    codes, said = ended(ranks(arguments_of_ranks(tiny_model, tmp_path / "whole")))
    assert codes == [0, 0], said
    first = sorted(set(checkpoints(tmp_path / "whole")))[0]
    command = arguments_of_ranks(tiny_model, tmp_path / "again", "--resume_from_checkpoint", first)
    codes, said = ended(ranks(command))
    assert codes == [0, 0], said
    whole, again = weights(tmp_path / "whole" / "out"), weights(tmp_path / "again" / "out")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_whole_seeds_on_each_are_the_seeds_of_one_process(tiny_model, tmp_path):
    flags = ["--seeds", "4"]
    codes, said = ended(ranks(arguments_of_ranks(tiny_model, tmp_path / "two", *flags)))
    assert codes == [0, 0], said
    codes, said = ended(ranks(arguments_of_ranks(tiny_model, tmp_path / "one", *flags), n=1))
    assert codes == [0], said
    one, two = weights(tmp_path / "one" / "out"), weights(tmp_path / "two" / "out")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_rank_that_dies_stops_the_other_with_a_sentence(tiny_model, tmp_path):
    processes = ranks(arguments_of_ranks(tiny_model, tmp_path, n_steps=100_000))
    deadline = time.monotonic() + 120
    while not checkpoints_of_any_kind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGKILL)
    codes, said = ended(processes, timeout=60)
    assert codes[0] == 1
    error = [line for line in said[0][1].splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert "another rank" in error[0]
    assert "latest" in error[0]


def checkpoints_of_any_kind(folder):
    """Whether training has begun: the folder of the run is there."""
    return list((folder / "checkpoints").glob("*"))


@pytest.mark.slow
def test_a_signal_to_one_stops_both_after_the_same_step(tiny_model, tmp_path):
    command = arguments_of_ranks(tiny_model, tmp_path, n_steps=100_000)
    processes = ranks(command)
    deadline = time.monotonic() + 120
    while not checkpoints_of_any_kind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(3)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = ended(processes, timeout=60)
    assert codes == [1, 1]
    assert "with a checkpoint in" in said[0][1]
    (folder,) = set(checkpoints(tmp_path))
    assert (folder / "activation_stream_1.safetensors").is_file()


@pytest.mark.parametrize(
    ("n_ranks", "parallel", "n_seeds", "message"),
    [
        (2, "seeds", 3, "2 processes cannot divide 3 seeds equally"),
        (2, "both", 1, "parallel must be one of auto, data, seeds, got 'both'"),
    ],
)
def test_what_cannot_be_divided(monkeypatch, n_ranks, parallel, n_seeds, message):
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", str(n_ranks))):
        monkeypatch.setenv(name, value)
    runs = seeds_of_runs(0, n_seeds, "both")
    with (
        pytest.raises(InputError, match=message),
        together(runner_config(("m", "t"), Path()), runs, parallel),
    ):
        pass


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused(tiny_model, tmp_path):
    command = arguments_of_ranks(
        tiny_model, tmp_path, train_batch_size_tokens=63, training_tokens=6300
    )
    codes, said = ended(ranks(command))
    assert codes == [1, 1]
    assert "2 processes cannot share steps of train_batch_size_tokens = 63" in said[0][1]
