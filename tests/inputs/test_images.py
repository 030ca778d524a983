"""Patch tokens of image models against the models themselves; images that cannot be read."""

from __future__ import annotations

import io

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors import safe_open
from transformers import AutoModel

from sae_lens_isae.errors import InputError, MissingInputError
from sae_lens_isae.inputs import image_sets
from sae_lens_isae.inputs.activation_files import save_activations
from sae_lens_isae.inputs.image_sets import open_images
from sae_lens_isae.inputs.patch_images import PatchImages, origin_of_file
from sae_lens_isae.inputs.vision_models import load_vision_model
from tests.vision import (
    GRID,
    N_PATCHES,
    NAMES,
    SIDE,
    WIDTH,
    processor,
    save_model,
    save_photographs,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(root / kind, kind) for kind in ("dinov2", "registers", "resnet")}


def read(folder, **settings):
    with pytest.warns(UserWarning, match="cannot be read"):
        return [image for _, image in open_images(str(folder)).images(**settings)]


@pytest.mark.parametrize(("kind", "n_before"), [("dinov2", 1), ("registers", 5), ("resnet", 0)])
def test_patches_are_those_of_the_model(models, folder, kind, n_before):
    layer = 1
    found = load_vision_model(str(models[kind]), f"layer.{layer}", WIDTH)
    images = [image.image for image in read(folder)[:3]]
    pixels = found.pixels(images)
    assert torch.equal(pixels, processor(SIDE)(images=images, return_tensors="pt")["pixel_values"])
    model = AutoModel.from_pretrained(models[kind]).eval()
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True).hidden_states[layer + 1]
    if kind == "resnet":
        rows, columns = states.shape[2:]
        assert found.grid == (rows, columns)
        expected = torch.stack(
            [states[:, :, r, c] for r in range(rows) for c in range(columns)], dim=1
        )
    else:
        assert found.grid == GRID
        expected = states[:, n_before:]
    torch.testing.assert_close(found.patches(pixels), expected)


def test_every_pass_has_every_image_once_in_another_order(folder):
    passes = [[image.name for image in read(folder, passes=n)] for n in range(3)]
    assert {f"{name}.png" for name in NAMES} == {n.removeprefix("grey/") for n in passes[0]}
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert passes[0] != passes[1]
    assert passes[1] == [image.name for image in read(folder, passes=1)]


def test_shares_have_every_image_once(folder):
    with pytest.warns(UserWarning, match="cannot be read"):
        shares = [
            [image.name for _, image in open_images(str(folder)).images(share=(n, 3))]
            for n in range(3)
        ]
    together = [name for share in shares for name in share]
    assert len(together) == len(set(together)) == len(NAMES)


def test_what_cannot_be_read_is_counted_and_named(folder):
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        images = [image for _, image in open_images(str(folder)).images()]
    (said,) = (str(w.message) for w in caught if str(folder) in str(w.message))
    assert "2 images" in said
    assert "broken.jpg" in said
    assert "cut.png" in said
    assert len(images) == len(NAMES)
    assert {image.image.mode for image in images} == {"RGB"}


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_of_images(folder, tmp_path, monkeypatch, streaming):
    files = sorted(str(file) for file in folder.rglob("*.png"))
    data = Dataset.from_dict({"image": files, "label": list(range(len(files)))})
    data = data.cast_column("image", datasets.Image())
    if streaming:
        stream = data.to_iterable_dataset()
        monkeypatch.setattr(image_sets, "load_dataset", lambda *_, **__: stream)
        images = open_images("of-the-hub", streaming=True)
    else:
        data.save_to_disk(tmp_path / "data")
        images = open_images(str(tmp_path / "data"))
    with pytest.warns(UserWarning, match="1 images cannot be read"):
        first, second = ([each for _, each in images.images(n)] for n in (0, 1))
    assert len(first) == len(second) == len(NAMES)
    sizes = sorted(each.image.size for each in first)
    assert sizes == sorted(image.image.size for image in read(folder))
    data.remove_columns("image").save_to_disk(tmp_path / "labels")
    with pytest.raises(InputError, match="columns \\['label'\\], expected one of images"):
        open_images(str(tmp_path / "labels"))


def test_images_of_a_package_are_found():
    images = dict(
        (image.name, image.image.size) for _, image in open_images("package:sklearn").images()
    )
    assert images["datasets/images/china.jpg"] == (640, 427)


def test_a_file_keeps_what_activations_are_of(models, folder, tmp_path):
    model = load_vision_model(str(models["dinov2"]), "layer.1", WIDTH)
    images = read(folder)[:2]
    pixels = model.pixels([image.image for image in images])
    thumbnails = [model.thumbnail(each) for each in pixels]
    names = [image.name for image in images]
    origin = PatchImages(thumbnails, names, model.grid, torch.arange(2 * N_PATCHES))
    save_activations(tmp_path / "a.safetensors", model.patches(pixels).flatten(0, 1), origin)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        again = origin_of_file(file)
    assert again.thumbnails == thumbnails
    assert (again.names, again.grid) == (names, GRID)
    assert again.excerpt(N_PATCHES + 6).token == f"{names[1]}, row 2, column 3"
    # what the model saw, but for the loss of the compression
    shown = Image.open(io.BytesIO(thumbnails[0]))
    seen = pixels[0] * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    seen += torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    assert shown.size == (SIDE, SIDE)
    pixels_shown = torch.from_numpy(np.array(shown)).permute(2, 0, 1)
    assert (pixels_shown / 255 - seen).abs().mean() < 0.04


def test_wrong_layers_and_models_are_refused(models, tmp_path):
    dinov2 = str(models["dinov2"])
    for arguments, said in {
        (dinov2, "layer.3", WIDTH): "name one of 0 to 2",
        (dinov2, "layers", WIDTH): "no layer",
        (dinov2, "layer.1", 20): f"set d_in to {WIDTH}",
        (dinov2, "embeddings.patch_embeddings.projection", 14): f"set d_in to {WIDTH}",
        (dinov2, "encoder.layer.1.attention", WIDTH): None,
    }.items():
        if said is None:
            assert load_vision_model(*arguments).grid == GRID
            continue
        with pytest.raises(InputError, match=said):
            load_vision_model(*arguments)
    with pytest.raises(InputError, match="no patch tokens"):
        load_vision_model(str(models["resnet"]), "pooler", WIDTH)
    with pytest.raises(MissingInputError, match="cannot be loaded"):
        load_vision_model(str(tmp_path / "none"), "layer.1")


def test_a_language_model_is_refused(tiny_model):
    with pytest.raises(InputError, match="name an image backbone"):
        load_vision_model(str(tiny_model[0]), "layer.0")


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no images"):
        open_images(str(tmp_path))
    with pytest.raises(MissingInputError, match="no folder of images"):
        open_images(str(tmp_path / "none"))
    with pytest.raises(MissingInputError, match="is not installed"):
        open_images("package:no_package")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="1 images cannot be read"):
        list(open_images(str(tmp_path)).images())
