"""Activations by name: every source gives the same rows, bad ones a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features
from safetensors.torch import save_file

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.activations import as_source, from_generator, open_activations
from sae_lens_isae.inputs.model_activations import from_model
from sae_lens_isae.synthetic import mixture_synthetic_model, signed_synthetic_model
from tests.conftest import D_IN
from tests.inputs.test_linear_sae import stock_sae
from tests.training.test_recovery import cache


def rows(source, size=3):
    return torch.cat(list(source.batches(size)))


@pytest.fixture
def files(tmp_path):
    x = torch.randn(2, 3, 4)
    save_file({"x": x}, tmp_path / "x.safetensors")
    save_file({"activations": x, "tokens": torch.zeros(2)}, tmp_path / "two.safetensors")
    save_file({"x": x.half()}, tmp_path / "half.safetensors")
    np.save(tmp_path / "x.npy", x.numpy())
    features = Features({"blocks.0": Array2D(shape=(3, 4), dtype="float32")})
    Dataset.from_dict({"blocks.0": x.numpy()}, features=features).save_to_disk(tmp_path / "cached")
    return tmp_path, x.reshape(6, 4)


def test_formats_agree(files):
    folder, x = files
    for name in ("x.safetensors", "two.safetensors", "x.npy", "cached"):
        source = open_activations(str(folder / name))
        assert (source.n_samples, source.d_in) == (6, 4)
        assert torch.equal(rows(source), x)
        assert torch.equal(rows(open_activations(str(folder / name), 5)), x[:5])
    half = rows(open_activations(str(folder / "half.safetensors")))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, x, atol=1e-2, rtol=1e-2)


def test_cached_data_set_with_several_hooks(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    features = Features({h: Array2D(shape=(3, 4), dtype="float32") for h in ("a", "b")})
    Dataset.from_dict({"a": x, "b": 2 * x}, features=features).save_to_disk(tmp_path)
    found = rows(open_activations(str(tmp_path), hook_name="b"))
    torch.testing.assert_close(found, torch.from_numpy(2 * x).reshape(6, 4))
    with pytest.raises(ValueError, match=r"holds \['a', 'b'\]"):
        open_activations(str(tmp_path), hook_name="c")


def test_generator_by_name():
    sizes = "num_features=20,hidden_dim=6,k=2,seed=3"
    for name, model in {
        f"synthetic:iid,{sizes}": signed_synthetic_model(20, 6, 2, seed=3),
        f"synthetic:mixture,{sizes},n_clusters=4,similarity=0.6": mixture_synthetic_model(
            20, 6, 2, n_clusters=4, similarity=0.6, seed=3
        ),
    }.items():
        torch.manual_seed(0)
        source = open_activations(name, 50)
        torch.manual_seed(0)
        other = from_generator(model, 50)
        found = rows(source)
        assert found.shape == (50, 6)
        # every pass gives the same samples, whatever draws random numbers in between
        torch.randn(7)
        assert torch.equal(found, rows(source))
        assert torch.equal(found, rows(other))
        assert not torch.equal(found, rows(from_generator(model, 50)))


def test_bad_names(tmp_path):
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, tmp_path / "two.safetensors")
    save_file({"a": torch.zeros(2, dtype=torch.long)}, tmp_path / "tokens.safetensors")
    (tmp_path / "x.pt").touch()
    (tmp_path / "folder").mkdir()
    for name, message in {
        str(tmp_path / "two.safetensors"): "expected one or one named",
        str(tmp_path / "tokens.safetensors"): "floating-point",
        str(tmp_path / "x.pt"): r"\.safetensors, \.npy",
        str(tmp_path / "folder"): "not a data set of cached activations",
        "synthetic:nothing,k=1": "unknown generator 'nothing'",
        "synthetic:iid,k=many": "expected e.g. synthetic:iid",
        "synthetic:iid,size=3": "expected e.g. synthetic:iid",
    }.items():
        with pytest.raises(ValueError, match=message):
            open_activations(name)
    with pytest.raises(FileNotFoundError, match="no activations file"):
        open_activations(str(tmp_path / "none.npy"))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, D_IN), "no activations"),
        (torch.zeros(3, 5), "d_in is 5, the SAE topk has 16"),
        (torch.zeros(3), "samples, d_in"),
    ],
)
def test_unusable_tensors(x, message):
    with pytest.raises(ValueError, match=message):
        as_source(x, {"topk": stock_sae("topk")})


def test_not_finite_or_too_few():
    x = torch.ones(1, D_IN)
    x[0, 0] = torch.inf
    source = as_source(x, {"topk": stock_sae("topk")})
    with pytest.raises(ValueError, match="NaN or Inf"):
        rows(source)


def test_something_else_is_refused_before_any_work():
    for wrong in (3, [1.0], {"x": torch.zeros(2, D_IN)}):
        with pytest.raises(InputError, match="activations must be a tensor, the name of a file"):
            as_source(wrong, {"topk": stock_sae("topk")})


def test_an_sae_that_does_not_know_its_model():
    with pytest.raises(ValueError, match=r"a model \(--model\), text \(--text\)"):
        from_model(stock_sae("topk"))


def test_what_sae_lens_caches(tiny_model, tmp_path):
    cache(tiny_model, tmp_path / "cached")
    source = open_activations(str(tmp_path / "cached"), hook_name="model.layers.0")
    assert source.n_samples >= 960
    assert rows(source, 100).shape == (source.n_samples, D_IN)
