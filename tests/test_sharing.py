"""What `isae upload` puts on the hub is loaded from there, and says how stable the SAEs are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalTokenNotFoundError
from sae_lens import SAE

from isae_cli.app import main
from sae_lens_isae import pairwise_identifiability, sharing
from sae_lens_isae.errors import InputError
from tests.conftest import D_IN, isae_config, make_sae

REPOSITORY = "somebody/stable-saes"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with two seeds, and that of their comparison."""
    root = tmp_path_factory.mktemp("trained")
    for seed in (42, 43):
        sae = make_sae(isae_config("iSAE-ME"), seed)
        sae.cfg.metadata.seed = seed
        sae.cfg.metadata.model_name = "gguf:mine"
        sae.save_inference_model(root / "out" / f"seed_{seed}")
    (root / "out" / "runner_cfg.json").write_text(json.dumps({"lr": 0.004, "training_tokens": 99}))
    names = [root / "out" / f"seed_{seed}" for seed in (42, 43)]
    report = pairwise_identifiability(
        names, torch.randn(300, D_IN), n_oracle_samples=0, progress=False
    )
    report.save(root / "report")
    return root, report


@pytest.mark.slow
def test_a_release_is_loaded_from_the_hubs_cache_elsewhere(trained, tmp_path):
    root, _ = trained
    release = sharing.prepare_release(root / "out", REPOSITORY, tmp_path / "r", root / "report")
    assert release.sae_ids == ["seed_42", "seed_43"]
    cache = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(release.folder, cache / "snapshots" / ("0" * 40))
    code = (
        "import sys, torch, sae_lens_isae\n"
        "from sae_lens import SAE\n"
        f"sae = SAE.from_pretrained({REPOSITORY!r}, 'seed_43')\n"
        "torch.save(sae.encode(torch.load(sys.argv[1])), sys.argv[2])\n"
    )
    x = torch.randn(20, D_IN)
    torch.save(x, tmp_path / "x.pt")
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.pt", tmp_path / "z.pt"],
        check=True,
        env={"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "",
             "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    here = SAE.load_from_disk(root / "out" / "seed_43").encode(x)
    torch.testing.assert_close(torch.load(tmp_path / "z.pt"), here)


def test_the_card_has_the_numbers_their_nulls_and_the_recipe(trained, tmp_path):
    root, report = trained
    release = sharing.prepare_release(root / "out", REPOSITORY, tmp_path / "r", root / "report")
    card = (release.folder / "README.md").read_text()
    pair = report.pairs[0]
    assert f"| seed_42, seed_43 | {pair.dcs:.3f} | {pair.sae.iou.value:.3f} |" in card
    (covariance,) = (row.dcs for row in report.chance if row.null == "covariance")
    assert f"| *by chance: random directions, activations' covariance* | {covariance:.3f}" in card
    for line in (
        "| lr | 0.004 |",
        "| training_tokens | 99 |",
        "| architecture in training | isae_me |",
        f'SAE.from_pretrained("{REPOSITORY}", "seed_42")',
        "import sae_lens_isae",
        "| `seed_43` | isae_me |",
    ):
        assert line in card
    n_trusted = (report.latents.query("sae == 'seed_42'").trust == "trusted").sum()
    assert f"| {n_trusted} |" in next(
        li for li in card.splitlines() if li.startswith("| seed_42 |")
    )
    assert (release.folder / "pairwise.html").is_file()
    assert "gguf:mine, which others do not have" in " ".join(release.warnings)
    # tables are tables: a header, a rule, and as many cells in every row
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_one_sae_without_numbers(trained, tmp_path):
    root, _ = trained
    release = sharing.prepare_release(root / "out" / "seed_42", REPOSITORY, tmp_path / "r", None)
    assert release.sae_ids == ["seed_42"]
    assert "Not measured." in (release.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("saes", "repository", "report", "message"),
    [
        ("out", "somebody", "report", "is no repository: name it user/name"),
        ("report", REPOSITORY, "report", "holds no SAE"),
        ("nowhere", REPOSITORY, "report", "holds no SAE"),
        ("out", REPOSITORY, "nowhere", r"compare them first \(isae pairwise\)"),
        ("other", REPOSITORY, "report", "is not about seed_1: run `isae pairwise`"),
    ],
)
def test_what_cannot_be_uploaded(trained, tmp_path, saes, repository, report, message):
    root, _ = trained
    if saes == "other" and not (root / "other").exists():
        make_sae(isae_config("iSAE"), 1).save_inference_model(root / "other" / "seed_1")
    with pytest.raises(InputError, match=message):
        sharing.prepare_release(root / saes, repository, tmp_path / "r", root / report)
    assert not (tmp_path / "r").exists()


def test_a_folder_in_use_is_left_alone(trained, tmp_path):
    root, _ = trained
    (tmp_path / "note.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        sharing.prepare_release(root / "out", REPOSITORY, tmp_path, None)


def test_the_command(trained, tmp_path, monkeypatch, capsys):
    root, _ = trained
    arguments = ["upload", str(root / "out"), REPOSITORY, "--report", str(root / "report")]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--dry-run", "--out", str(tmp_path / "hub")])
    assert not stop.value.code
    assert (tmp_path / "hub" / "seed_42" / "sae_weights.safetensors").is_file()
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--dry-run"])
    assert "name a folder for the dry run" in capsys.readouterr().err

    sent: list[tuple[str, set[str]]] = []
    monkeypatch.setattr(
        sharing,
        "upload_saes_to_huggingface",
        lambda saes, repository, **_: sent.append((repository, set(saes))),
    )
    monkeypatch.setattr(
        sharing.HfApi,
        "upload_folder",
        lambda _, **k: sent.append((k["repo_id"], set(k["allow_patterns"]))),
    )
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code
    assert sent == [
        (REPOSITORY, {"seed_42", "seed_43"}),
        (REPOSITORY, {"README.md", "pairwise.html"}),
    ]
    assert f"uploaded https://huggingface.co/{REPOSITORY}" in capsys.readouterr().out

    def refused(*_, **__):
        raise LocalTokenNotFoundError("no token\nmore")

    monkeypatch.setattr(sharing, "upload_saes_to_huggingface", refused)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    assert "no token; log in with `hf auth login`" in capsys.readouterr().err
