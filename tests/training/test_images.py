"""Runs on images: as whole, as exact and as measurable as those on text."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
import wandb
from sae_lens import SAE, LoggingConfig, SAETrainer
from sae_lens.config import SAETrainerConfig
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from sae_lens_isae import audit, pairwise_identifiability, recode
from sae_lens_isae.errors import InputError
from sae_lens_isae.full_report import ReportPlan, full_report
from sae_lens_isae.inputs.activation_cache import HELD_OUT_FILENAME
from sae_lens_isae.inputs.activations import open_activations
from sae_lens_isae.inputs.image_sets import open_images
from sae_lens_isae.inputs.patch_images import PatchImages
from sae_lens_isae.inputs.vision_models import load_vision_model
from sae_lens_isae.recoding import RecodeSettings
from sae_lens_isae.training.caching import cache_activations
from sae_lens_isae.training.checkpoints import Stopped
from sae_lens_isae.training.images import image_batches, image_data_provider
from sae_lens_isae.training.runs import train
from tests.conftest import complaint, isae, isae_config, make_sae
from tests.training.test_data_parallel import ended, ranks
from tests.training.test_recovery import assert_same, checkpoints, interrupt_at, weights
from tests.vision import (
    N_PATCHES,
    NAMES,
    WIDTH,
    image_config,
    processor,
    save_model,
    save_photographs,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*(cannot be read|read again|more than once)")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    root = tmp_path_factory.mktemp("vision")
    return save_model(root / "model"), save_photographs(root / "photographs")


def trained(cfg, n_seeds=2, **settings):
    result = train(cfg, n_seeds, n_kept_activations=100, **settings)
    return result, weights(Path(cfg.output_path))


@pytest.mark.parametrize("once", [True, False])
def test_batches_are_the_patches_of_every_image(here, tmp_path, once):
    batches = image_batches(image_config(*here, tmp_path), once)
    try:
        found = []
        while sum(map(len, found)) < len(NAMES) * N_PATCHES:
            found.append(next(batches))
        assert batches.position() == (1, 0)
        if once:
            with pytest.raises(StopIteration):
                next(batches)
    finally:
        batches.close()
    model = load_vision_model(str(here[0]), "layer.1", WIDTH)
    images = [image.image for _, image in open_images(str(here[1]), seed=42).images()]
    expected = model.patches(model.pixels(images)).flatten(0, 1)
    torch.testing.assert_close(torch.cat(found), expected)


def test_sae_lens_trainer_takes_the_activations(here):
    model, images = map(str, here)
    cfg = SAETrainerConfig(
        total_training_samples=32 * 10, train_batch_size_samples=32, lr=1e-2, lr_end=1e-2
    )
    sae = make_sae(isae_config("iSAE"))
    with image_data_provider(
        model, images, 1, batch_size=32, buffer_size=100, images_at_once=2
    ) as batches:
        first = next(batches)
        SAETrainer(cfg, sae, batches).fit()
        last = next(batches)
    assert first.shape == (32, WIDTH)
    with torch.no_grad():
        error = (sae(last) - last).square().sum() / (last - last.mean(0)).square().sum()
    assert error < 0.9


def test_a_report_of_images(here, tmp_path):
    cfg = image_config(*here, tmp_path)
    with pytest.raises(InputError, match="leave out --evals"):
        full_report(cfg, tmp_path / "report", ReportPlan(evals=("core",)))
    page = full_report(cfg, tmp_path / "report", ReportPlan(n_activations=100))
    assert "explained variance" in page.read_text()
    state = json.loads((tmp_path / "report" / "report.json").read_text())
    assert list(state["parts"]) == ["train", "pairwise", "audit", "recode"]


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_weights_and_biases_hears_of_a_run(here, tmp_path, monkeypatch, n_seeds):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    # it keeps the folder of the first run of a process
    wandb.teardown()
    logger = LoggingConfig(log_to_wandb=True, wandb_project="images", wandb_log_frequency=2)
    trained(image_config(*here, tmp_path, logger=logger), n_seeds)
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"losses/mse_loss" in log.read_bytes()


def test_seeds_are_what_each_is_alone(here, tmp_path):
    _, together = trained(image_config(*here, tmp_path / "two"))
    for seed in (42, 43):
        _, alone = trained(image_config(*here, tmp_path / str(seed), seed=seed), n_seeds=1)
        # the images come in the order of the run's seed: only the first sees the same batches
        same = all(
            torch.equal(value, together[f"seed_{seed}/{name}"])
            for name, value in alone.items()
            if name.startswith("sae_weights")
        )
        assert same == (seed == 42)


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_saes(here, tmp_path, monkeypatch, n_seeds):
    _, whole = trained(image_config(*here, tmp_path / "whole"), n_seeds)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 13)
        with pytest.raises(Stopped, match="with a checkpoint"):
            trained(image_config(*here, tmp_path / "cut"), n_seeds)
    last = max(checkpoints(tmp_path / "cut"), key=lambda folder: int(folder.name))
    changes = {"resume_from_checkpoint": str(last)}
    _, resumed = trained(image_config(*here, tmp_path / "cut", **changes), n_seeds)
    assert_same(whole, resumed)


def test_saes_are_stock_and_measured_with_their_images(here, tmp_path):
    result, _ = trained(image_config(*here, tmp_path))
    assert {"explained_variance", "l0"} == set(result.saes[0].metrics)
    sae = SAE.load_from_disk(str(result.saes[0].path))
    assert sae.cfg.architecture() == "abstopk"
    assert sae.cfg.metadata.dataset_path == str(here[1])
    paths = [str(trained.path) for trained in result.saes]
    report = pairwise_identifiability(paths, result.activations_path, progress=False)
    assert isinstance(report.origin, PatchImages)
    assert report.n_samples == 100
    report.save(tmp_path / "pairwise")
    assert "data:image/jpeg;base64" in (tmp_path / "pairwise" / "pairwise.html").read_text()
    # the model runs, as for text
    audit(paths, progress=False).save(tmp_path / "audit")
    assert "data:image/jpeg;base64" in (tmp_path / "audit" / "audit.html").read_text()
    quick = RecodeSettings(n_components=5, gd_starts=1, noise_levels=(0.1,))
    recoded = recode(paths[0], str(result.activations_path), quick, progress=False)
    recoded.save(tmp_path / "recode")
    assert "data:image/jpeg;base64" in (tmp_path / "recode" / "recode.html").read_text()
    with pytest.raises(InputError, match="is an image model"):
        recode(paths[0], settings=quick, progress=False)


def test_saes_train_from_a_cache(here, tmp_path):
    cfg = image_config(*here, tmp_path, training_tokens=32 * 3)
    cache = cache_activations(cfg, tmp_path / "cache", n_held_out=20, n_per_file=30)
    origin = open_activations(str(cache.folder)).origin()
    assert isinstance(origin, PatchImages)
    # the last of the images that are held out is whole
    assert len(origin.names) == 2
    images = [image.name for _, image in open_images(str(here[1]), seed=42).images()]
    assert list(origin.names) == images[:2]
    numbers = [cache.load(file.name).token_ids for file in cache.files]
    assert all((image == image[0]).all() for batch in numbers for image in batch)
    rows = torch.cat([cache.activations(n) for n in (HELD_OUT_FILENAME, cache.files[0].name)])
    batches = image_batches(cfg)
    direct = torch.cat([next(batches) for _ in range(2)])
    batches.close()
    torch.testing.assert_close(rows[: len(direct)], direct)
    result, found = trained(cfg, activations=str(cache.folder))
    assert any(name.startswith("seed_43/sae_weights") for name in found)
    assert load_file(result.activations_path)["activations"].shape == (2 * N_PATCHES, WIDTH)


def test_a_buffer_that_holds_no_batch_is_refused(here, tmp_path):
    cfg = image_config(*here, tmp_path, n_batches_in_buffer=1)
    with pytest.raises(InputError, match=f"patches of an image = {N_PATCHES} tokens do not fill"):
        train(cfg)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "photographs"], "need a model"),
        (["--vision-model", "MODEL", "--images", "./none", "--layer", 1], "no folder of images"),
        (["--vision-model", "MODEL", "--images", "EMPTY", "--layer", 1], "holds no images"),
        (["--vision-model", "MODEL", "--images", "IMAGES", "--layer", 7], "name one of 0 to 2"),
    ],
)
def test_bad_input(here, tmp_path, monkeypatch, capsys, arguments, said):
    (tmp_path / "empty").mkdir()
    names = {"MODEL": here[0], "IMAGES": here[1], "EMPTY": tmp_path / "empty"}
    arguments = [names.get(argument, argument) for argument in arguments]
    common = ["--architecture", "isae", "--d_in", WIDTH, "--d_sae", 40, "--k", 3]
    sizes = ["--training_tokens", 64, "--train_batch_size_tokens", 32, "--device", "cpu"]
    arguments = ["train", *arguments, *common, *sizes, "--n_batches_in_buffer", 5]
    assert said in complaint(arguments, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["data", "seeds"])
def test_two_processes_train_on_images(here, tmp_path, parallel):
    processes = ranks([
        "train", "--vision-model", here[0], "--images",
        here[1], "--layer", 1, "--architecture", "isae", "--d_in", WIDTH, "--d_sae", 40, "--k", 3,
        "--training_tokens", 640, "--train_batch_size_tokens", 32, "--n_batches_in_buffer", 6,
        "--store_batch_size_prompts", 2, "--device", "cpu", "--seeds", 2, "--parallel", parallel,
        "--output_path", tmp_path / "out", "--checkpoint_path", tmp_path / "checkpoints",
        "--keep-activations", 50,
    ])  # fmt: skip
    codes, said = ended(processes)
    assert codes == [0, 0], said
    for seed in (42, 43):
        assert (tmp_path / "out" / f"seed_{seed}" / "sae_weights.safetensors").is_file()


@pytest.mark.slow
def test_dinov2_base_from_the_hub_s_cache(tmp_path):
    """The real shape and loading code, with random weights and photographs of scikit-image."""
    name = "facebook/dinov2-base"
    snapshots = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    folder = snapshots / "snapshots" / ("0" * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Dinov2Model(Dinov2Config(image_size=518, patch_size=14)).save_pretrained(folder)
    processor(224).save_pretrained(folder)
    (snapshots / "refs").mkdir()
    (snapshots / "refs" / "main").write_text("0" * 40)
    images = save_photographs(tmp_path / "photographs")
    done = isae(
        "train", "--config", "dinov2_isae", "--images", images, "--seeds", 2,
        "--training_tokens", 1280, "--train_batch_size_tokens", 128, "--lr_warm_up_steps", 2,
        "--lr_decay_steps", 4, "--average_from", 6, "--average_until", 10, "--n_checkpoints", 0,
        "--n_batches_in_buffer", 4, "--store_batch_size_prompts", 2, "--device", "cpu",
        "--n_batches_for_norm_estimate", 2, "--log_to_wandb", "false", "--output_path", "out",
        "--keep-activations", 300, "--checkpoint_path", "checkpoints",
        cwd=tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "explained variance" in done.stdout
    for seed in (42, 43):
        sae = SAE.load_from_disk(str(tmp_path / "out" / f"seed_{seed}"))
        assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.metadata.model_name) == (768, 4096, name)
    source = open_activations(str(tmp_path / "out" / "activations.safetensors"))
    assert source.origin().grid == (16, 16)
    assert os.path.getsize(folder / "model.safetensors") > 3e8
