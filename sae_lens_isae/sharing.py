"""Put SAEs on the hub through SAELens' uploader, with a card that says how stable they are."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from jinja2 import Environment, PackageLoader, StrictUndefined
from sae_lens import SAE, upload_saes_to_huggingface
from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME

from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.files import output_folder
from sae_lens_isae.identifiability.chance import TITLES
from sae_lens_isae.identifiability.pairwise_report import SCHEMA
from sae_lens_isae.inputs.gguf import GGUF_PREFIX
from sae_lens_isae.inputs.identity import sae_identity
from sae_lens_isae.inputs.saes import load_sae
from sae_lens_isae.inputs.texts import PACKAGE_PREFIX
from sae_lens_isae.report.page import whole_page

CARD_FILENAME = "README.md"
_REPORT_PAGE, _REPORT_NUMBERS = "pairwise.html", "pairwise.json"
_RECIPE = (
    "model_name",
    "hook_name",
    "dataset_path",
    "training_tokens",
    "context_size",
    "train_batch_size_tokens",
    "lr",
    "lr_warm_up_steps",
    "lr_decay_steps",
    "lr_end",
)
"""Of SAELens' config of a run, what says how an SAE was trained."""


@dataclass(frozen=True)
class Release:
    """What is put on the hub, as a folder in the layout of the repository."""

    folder: Path
    repository: str
    sae_ids: list[str]
    warnings: list[str]
    """What whoever pulls it will not be able to use."""


def prepare_release(
    saes: str | Path, repository: str, out: Path, report: str | Path | None
) -> Release:
    """Lay out SAEs, a model card and the page of `isae pairwise` as on the hub.

    Args:
        saes: Folder of one SAE, or with one in each of several folders, as `isae train` writes.
        repository: `user/name`.
        out: An empty folder, or one that is made.
        report: Folder of `isae pairwise` on these SAEs; None: the card has no numbers.

    Raises:
        MissingInputError: There are no SAEs, or no report.
        InputError: The repository's name is none, the report is of other SAEs, or `out` is in use.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"{repository!r} is no repository: name it user/name")
    found = _find(Path(saes))
    loaded = {sae_id: load_sae(str(folder)) for sae_id, folder in found.items()}
    numbers = None if report is None else _read_report(Path(report), loaded)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty: name another folder (--out), or remove it")
    with output_folder(out):
        for sae_id, folder in found.items():
            for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, RUNNER_CFG_FILENAME):
                if (folder / name).is_file():
                    (out / sae_id).mkdir(parents=True, exist_ok=True)
                    shutil.copy(folder / name, out / sae_id / name)
        if report is not None and (Path(report) / _REPORT_PAGE).is_file():
            page = whole_page(Path(report) / _REPORT_PAGE)
            (out / _REPORT_PAGE).write_text(page, encoding="utf-8")
        card = _card(repository, loaded, numbers, _runner_config(Path(saes), found))
        (out / CARD_FILENAME).write_text(card, encoding="utf-8")
    return Release(out, repository, list(found), _unreachable(loaded))


def upload(release: Release) -> str:
    """Put a release on the hub.

    Returns:
        Its address.

    Raises:
        InputError: The hub cannot be reached, or refuses.
    """
    folders: dict[str, SAE[Any] | Path | str] = {
        sae_id: release.folder / sae_id for sae_id in release.sae_ids
    }
    try:
        upload_saes_to_huggingface(folders, release.repository, add_default_readme=False)
        HfApi().upload_folder(
            folder_path=release.folder,
            repo_id=release.repository,
            allow_patterns=[CARD_FILENAME, _REPORT_PAGE],
            commit_message="Model card with the stability of the SAEs",
        )
    except OfflineModeIsEnabled as error:
        raise InputError(
            "the hub cannot be reached: HF_HUB_OFFLINE is set; --dry-run lays the folder out"
        ) from error
    except (LocalTokenNotFoundError, HfHubHTTPError, ConnectionError) as error:
        first = str(error).strip().partition("\n")[0]
        raise InputError(
            f"the hub did not take {release.repository}: {first}; log in with `hf auth login` to "
            "an account that may write there; --dry-run lays the folder out"
        ) from error
    return f"https://huggingface.co/{release.repository}"


def _find(folder: Path) -> dict[str, Path]:
    """Folders of SAEs by the ids that they get."""
    if (folder / SAE_CFG_FILENAME).is_file():
        return {folder.resolve().name: folder}
    configs = sorted(folder.rglob(SAE_CFG_FILENAME)) if folder.is_dir() else []
    found = {str(path.parent.relative_to(folder)): path.parent for path in configs}
    if not found:
        raise MissingInputError(
            f"{folder} holds no SAE: name a folder with {SAE_CFG_FILENAME}, or one with such "
            "folders, as `isae train` writes them"
        )
    return found


def _read_report(folder: Path, saes: Mapping[str, SAE[Any]]) -> dict[str, Any]:
    path = folder / _REPORT_NUMBERS
    if not path.is_file():
        raise MissingInputError(
            f"{path} is not there: the card says how stable the SAEs are, so compare them first "
            "(isae pairwise), name its folder (--report), or upload without (--no-report)"
        )
    with explained(path, "is not a report of `isae pairwise`", "run it again"):
        numbers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if numbers["schema"] != SCHEMA:
            raise InputError(f"{path} was written by another version: run `isae pairwise` again")
        compared = {sae["identity"] for sae in numbers["saes"]}
    unknown = [sae_id for sae_id, sae in saes.items() if sae_identity(sae) not in compared]
    if unknown:
        raise InputError(
            f"{path} is not about {', '.join(unknown)}: run `isae pairwise` on what is uploaded"
        )
    return numbers


def _runner_config(folder: Path, found: Mapping[str, Path]) -> dict[str, Any]:
    """Of the run that trained the SAEs; empty if it was not kept."""
    for place in (folder, *found.values()):
        path = place / RUNNER_CFG_FILENAME
        if path.is_file():
            with explained(path, "is not the config of a run"):
                return json.loads(path.read_text(encoding="utf-8"))
    return {}


def _card(
    repository: str,
    saes: Mapping[str, SAE[Any]],
    numbers: Mapping[str, Any] | None,
    run: Mapping[str, Any],
) -> str:
    first = next(iter(saes.values()))
    metadata = first.cfg.metadata
    recipe = {name: run.get(name, metadata[name]) for name in _RECIPE}
    training: dict[str, Any] = metadata["training_architecture_details"] or {}
    environment = Environment(
        loader=PackageLoader("sae_lens_isae", "report/templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    return environment.get_template("card.md.j2").render(
        repository=repository,
        saes={
            sae_id: {
                "architecture": sae.cfg.architecture(),
                "d_in": sae.cfg.d_in,
                "d_sae": sae.cfg.d_sae,
                "k": getattr(sae.cfg, "k", None),
                "seed": sae.cfg.metadata["seed"],
            }
            for sae_id, sae in saes.items()
        },
        is_stock=all(type(sae).__module__.startswith("sae_lens.") for sae in saes.values()),
        recipe={
            "architecture in training": metadata["training_architecture"],
            **{name: value for name, value in recipe.items() if value is not None},
            **{name: value for name, value in training.items() if value not in (None, 0, 0.0)},
        },
        numbers=numbers,
        titles=TITLES,
        pairs=[
            {
                "pair": f"{pair['a']}, {pair['b']}",
                "dcs": pair["dcs"],
                "iou": pair["sae"]["iou"]["value"],
                "l2": pair["sae"]["l2"]["value"],
            }
            for pair in (numbers["pairs"] if numbers else [])
        ],
        versions={name: version(name) for name in ("sae-lens-isae", "sae-lens")},
    )


def _unreachable(saes: Mapping[str, SAE[Any]]) -> list[str]:
    """Names in the metadata that mean something on this machine only."""
    said: list[str] = []
    for field in ("model_name", "dataset_path"):
        values = {str(sae.cfg.metadata[field]) for sae in saes.values()} - {"None"}
        said += [
            f"{field} is {value}, which others do not have: name the one on the hub in cfg.json"
            for value in sorted(values)
            if Path(value).exists() or value.startswith((GGUF_PREFIX, PACKAGE_PREFIX, "/", "."))
        ]
    return said
