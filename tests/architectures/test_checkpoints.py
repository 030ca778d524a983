"""What is saved: round trips, stock SAELens in another process, folding, continued training."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from huggingface_hub.utils import EntryNotFoundError
from sae_lens import SAE, AbsTopKSAE, TopKSAE, TrainingSAE
from safetensors.torch import load_file, save_file

from sae_lens_isae import ISAEMESAE, ISAEMESAEConfig
from tests.conftest import (
    BATCH,
    D_IN,
    D_SAE,
    LINEAR_VARIANTS,
    NORMALIZATIONS,
    VARIANTS,
    Activations,
    K,
    isae_config,
    make_sae,
    make_trainer,
    run_python,
    train_sae,
)

STOCK = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
here = Path(sys.argv[1])
x = load_file(here / "x.safetensors")["x"]
for folder in sorted(path for path in here.iterdir() if path.is_dir()):
    sae = SAE.load_from_disk(folder)
    codes = sae.encode(x)
    save_file({"codes": codes.detach(), "recons": sae.decode(codes).detach()}, folder / "seen")
    print(folder.name, type(sae).__name__, sae.cfg.normalize_activations, sep=",")
assert not any(name.startswith("sae_lens_isae") for name in sys.modules)
"""


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_export_equals_training(variant, normalization, tmp_path, activations):
    sae = train_sae(isae_config(variant, normalize_activations=normalization))
    with torch.no_grad():
        codes = sae.encode(activations)
        recons = sae.decode(codes)
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    torch.testing.assert_close(loaded.encode(activations), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        loaded.decode(loaded.encode(activations)), recons, rtol=1e-5, atol=1e-5
    )
    if normalization != "covariance_whitening":
        torch.testing.assert_close(loaded.W_dec.norm(dim=-1), torch.ones(D_SAE))
    stateless = normalization != "constant_norm_rescale"
    assert loaded.cfg.normalize_activations == ("none" if stateless else normalization)


def test_stock_sae_lens_reads_the_exports_without_the_plugin(tmp_path, activations):
    saes = {}
    for variant, normalization in itertools.product(LINEAR_VARIANTS, NORMALIZATIONS):
        name = f"{variant} {normalization}"
        saes[name] = train_sae(isae_config(variant, normalize_activations=normalization))
        saes[name].save_inference_model(tmp_path / name)
    save_file({"x": activations}, tmp_path / "x.safetensors")
    printed = run_python(STOCK, tmp_path).splitlines()
    for line, (name, sae) in zip(sorted(printed), sorted(saes.items()), strict=True):
        kind = TopKSAE if name.startswith("TopK") else AbsTopKSAE
        assert line == f"{name},{kind.__name__},{sae.cfg.normalize_activations}"
        seen = load_file(tmp_path / name / "seen")
        codes = sae.encode(activations)
        torch.testing.assert_close(seen["codes"], codes, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen["recons"], sae.decode(codes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_default_form_is_stateless(variant, tmp_path, activations):
    """Two decodes in a row, and a decode of codes that no encode of this object produced."""
    train_sae(isae_config(variant)).save_inference_model(tmp_path)
    sae, other = SAE.load_from_disk(tmp_path), SAE.load_from_disk(tmp_path)
    codes_a = sae.encode(activations[:5])
    expected = sae.decode(codes_a)
    sae.encode(activations[5:10])
    torch.testing.assert_close(sae.decode(codes_a), expected, rtol=0, atol=0)
    torch.testing.assert_close(sae.decode(codes_a), expected, rtol=0, atol=0)
    torch.testing.assert_close(other.decode(codes_a), expected, rtol=0, atol=0)


def test_constant_norm_rescale_has_the_stock_limits(tmp_path, activations):
    """Documented limits of SAELens' run-time normalisation; fails should SAELens lift them."""
    cfg = isae_config("iSAE", normalize_activations="constant_norm_rescale")
    train_sae(cfg).save_inference_model(tmp_path)
    sae = SAE.load_from_disk(tmp_path)
    codes = sae.encode(activations)
    sae.decode(codes)
    with pytest.raises(AttributeError):
        sae.decode(codes)
    assert sae.encode(torch.zeros(1, D_IN)).isnan().any()


@pytest.mark.parametrize("normalization", ["none", "covariance_whitening"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_checkpoint_loads_for_inference_and_for_training(
    variant, normalization, tmp_path, activations
):
    sae = train_sae(isae_config(variant, normalize_activations=normalization))
    sae.save_model(tmp_path)
    for loaded in (SAE.load_from_disk(tmp_path), TrainingSAE.load_from_disk(tmp_path)):
        torch.testing.assert_close(loaded.encode(activations), sae.encode(activations))
        torch.testing.assert_close(loaded(activations), sae(activations))


@pytest.mark.parametrize(
    "normalization", ["none", "expected_average_only_in", "covariance_whitening"]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(variant, normalization, tmp_path):
    def trainer(path):
        sae = make_sae(isae_config(variant, normalize_activations=normalization), seed=1)
        return make_trainer(
            sae, Activations(0.5), 24, n_checkpoints=1, checkpoint_path=str(tmp_path / path)
        )

    whole = trainer("whole")
    whole.fit()
    (checkpoint,) = (tmp_path / "whole").iterdir()

    resumed = trainer("resumed")
    torch.manual_seed(999)  # the global generator of another process
    resumed.load_trainer_state(checkpoint)
    resumed.sae.load_weights_from_checkpoint(checkpoint)
    resumed.data_provider = Activations(0.5, start=whole_batches(resumed, normalization))
    resumed.fit()
    for name, value in whole.sae.state_dict().items():
        torch.testing.assert_close(resumed.sae.state_dict()[name], value, rtol=0, atol=0)


def whole_batches(trainer, normalization):
    """Batches that the uninterrupted run had drawn: its norm estimate took three."""
    return trainer.n_training_samples // BATCH + 3 * (normalization != "none")


def test_same_seed_gives_the_same_sae_and_another_does_not():
    first, second, other = (train_sae(isae_config("iSAE-ME"), seed=s) for s in (3, 3, 4))
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0)
    assert not torch.equal(first.W_dec, other.W_dec)


@pytest.mark.parametrize("kind", ["save_model", "save_inference_model"])
def test_continued_training_keeps_the_bias(kind, tmp_path):
    """Also where SAELens restarts at step 0 (`from_pretrained_path`)."""
    sae = train_sae(isae_config("iSAE-ME"))
    getattr(sae, kind)(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    bias = loaded.b_dec.detach().clone()
    trainer = make_trainer(loaded, Activations(50.0), 2)
    trainer.step(next(trainer.data_provider))
    assert (loaded.b_dec - bias).abs().max() < 0.01


@pytest.mark.parametrize("step_matrix", ["full", "tied"])
@pytest.mark.parametrize("rescale", [True, False])
def test_folding_is_exact(step_matrix, rescale, activations):
    """Decoder norms and activation scale, on an SAE with atoms of any norm, in float64."""
    torch.manual_seed(0)
    cfg = ISAEMESAEConfig(
        D_IN,
        D_SAE,
        k=K,
        dtype="float64",
        step_matrix=step_matrix,
        rescale_acts_by_decoder_norm=rescale,
    )
    sae = ISAEMESAE(cfg)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
        if step_matrix == "full":
            sae.S.normal_(std=0.1)
        sae.b_dec.normal_()
        x = activations.double()
        codes, recons = sae.encode(x), sae(x)
        if rescale:
            sae.fold_W_dec_norm()
            torch.testing.assert_close(sae.encode(x), codes)
            torch.testing.assert_close(sae(x), recons)
            torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE).double())
        else:
            with pytest.raises(NotImplementedError, match="not safe"):
                sae.fold_W_dec_norm()
        sae.fold_activation_norm_scaling_factor(0.3)
        torch.testing.assert_close(sae(x / 0.3), recons / 0.3)


def test_stock_flag_folds_the_norms_on_loading(tmp_path, activations):
    sae = train_sae(isae_config("iSAE-ME"))
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path, fold_W_dec_norm=True)
    torch.testing.assert_close(loaded(activations), sae(activations), rtol=1e-5, atol=1e-5)


def test_missing_or_misshaped_step_matrix_is_named(tmp_path):
    train_sae(isae_config("iSAE-ME full"), n_steps=2).save_inference_model(tmp_path / "sae")
    weights = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    for name, S in {"missing": None, "misshaped": torch.zeros(D_SAE, 3)}.items():
        folder = shutil.copytree(tmp_path / "sae", tmp_path / name)
        broken = {key: value for key, value in weights.items() if key != "S"}
        if S is not None:
            broken["S"] = S
        save_file(broken, folder / "sae_weights.safetensors")
        with pytest.raises(ValueError, match=r"step matrix S has shape"):
            SAE.load_from_disk(folder)
        with pytest.raises(ValueError, match=r"step matrix S has shape"):
            TrainingSAE.load_from_disk(folder)


def test_export_holds_no_training_state(tmp_path):
    train_sae(isae_config("iSAE")).save_inference_model(tmp_path)
    assert set(load_file(tmp_path / "sae_weights.safetensors")) == {
        "W_enc",
        "W_dec",
        "b_enc",
        "b_dec",
    }
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["architecture"] == "abstopk"
    assert cfg["metadata"]["training_architecture"] == "isae"


def test_hub_upload_and_from_pretrained(tmp_path, activations, monkeypatch):
    """Through SAELens' uploader and hub loader, with the hub replaced by a folder."""
    import sae_lens.loading.pretrained_sae_loaders as loaders
    from sae_lens.training import upload_saes_to_huggingface as upload

    sae = train_sae(isae_config("iSAE-ME"))
    sae.save_inference_model(tmp_path / "out")
    hub = tmp_path / "hub"

    class Hub:
        def upload_folder(self, folder_path, path_in_repo, **_):
            shutil.copytree(folder_path, hub / path_in_repo)

        def upload_file(self, **_): ...

    monkeypatch.setattr(upload, "HfApi", Hub)
    monkeypatch.setattr(upload, "_repo_exists", lambda *_: True)
    monkeypatch.setattr(upload, "_repo_file_exists", lambda *_: True)
    upload.upload_saes_to_huggingface(
        {"layer_9": SAE.load_from_disk(tmp_path / "out")}, "someone/some-saes", show_progress=False
    )

    def download(repo_id, filename, **_):
        if not (hub / filename).exists():
            raise EntryNotFoundError(filename)
        return str(hub / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    loaded = SAE.from_pretrained("someone/some-saes", "layer_9")
    assert isinstance(loaded, ISAEMESAE)
    torch.testing.assert_close(
        loaded.encode(activations), sae.encode(activations), rtol=1e-5, atol=1e-5
    )


def test_an_encoder_bias_is_refused(tmp_path):
    """Training would ignore it, and encoding and the export would not."""
    sae = make_sae(isae_config("iSAE"))
    sae.save_model(tmp_path)
    state = load_file(tmp_path / "sae_weights.safetensors")
    state["b_enc"] = torch.ones(D_SAE)
    save_file(state, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=r"has an encoder bias \(b_enc\)"):
        make_sae(isae_config("iSAE")).load_weights_from_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="encoder bias"):
        TrainingSAE.load_from_disk(tmp_path)
