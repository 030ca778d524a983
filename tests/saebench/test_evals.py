"""SAEBench's own code on presented SAEs: signed codes before and after, one run like another."""

from __future__ import annotations

import json
import pickle
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig

from sae_lens_isae import bench as run_bench
from sae_lens_isae.inputs.language_models import load_language_model
from sae_lens_isae.inputs.saes import load_sae
from sae_lens_isae.inputs.shared_model import load_shared_model
from sae_lens_isae.saebench.adapter import SAEBenchAdapter
from sae_lens_isae.saebench.plots import SHOWN, plot_with_saebench
from sae_lens_isae.saebench.texts import TextSet
from sae_lens_isae.saebench.upstream import contained, with_texts
from tests.saebench.conftest import ALL_EVALS, HOOK, STORIES, needs_saebench, save_sae

pytestmark = needs_saebench
SMALL = {"train_size": 40, "test_size": 20, "core_batches": 1}


def bench(saes, tiny_model, out, evals=("core",), resume=False, **settings):
    text = str(tiny_model[1])
    settings = {"data": "offline", "text": text, "resume": resume, **SMALL, **settings}
    return run_bench(saes, evals, out, **settings).results


def test_tpp_credits_a_latent_that_fires_negatively_only_when_unfolded(tmp_path):
    """A class is where its coordinate is negative, one class is where none is, and the SAE's code
    is the activation. As it is, a class's own latent is never credited; unfolded, without it
    the class cannot be told from the one that has no coordinate."""
    from sae_bench.evals.scr_and_tpp import main
    from sae_bench.evals.sparse_probing import probe_training

    generator = torch.Generator().manual_seed(0)

    def texts(n, column):
        x = 0.1 * torch.randn(n, 3, 6, generator=generator)
        if column < 3:
            x[..., column] -= 3
        return x

    classes = ["a", "b", "c", "none"]
    parts = {
        part: {name: texts(n, i) for i, name in enumerate(classes)}
        for part, n in (("train", 40), ("test", 20))
    }
    means = {part: {k: v.mean(1) for k, v in acts.items()} for part, acts in parts.items()}
    torch.manual_seed(0)
    with contained(), torch.enable_grad():
        probes, accuracies = probe_training.train_probe_on_activations(
            means["train"], means["test"], use_sklearn=False, batch_size=16, epochs=40, lr=0.05
        )
    torch.save(parts, tmp_path / "mine_activations.pt")
    with (tmp_path / "mine_probes.pkl").open("wb") as file:
        pickle.dump({"llm_probes": probes, "llm_test_accuracies": accuracies}, file)
    assert min(accuracies.values()) > 0.95

    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=6, d_sae=6, k=1))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(6))
        sae.W_dec.copy_(torch.eye(6))
    sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name = "blocks.0.hook_resid_post", "none"
    config = main.ScrAndTppEvalConfig(
        perform_scr=False, n_values=[2], dataset_names=["mine"], llm_batch_size=8
    )
    found = {}
    for form in ("as_is", "non_negative"):
        with contained(), with_texts({"mine": TextSet("mine", dict.fromkeys(classes))}):
            results, _ = main.run_eval_single_sae(
                config, SAEBenchAdapter(sae, form), None, "cpu", str(tmp_path)
            )
        found[form] = results["tpp_threshold_2_total_metric"]
    assert found["as_is"] < 0.05
    assert found["non_negative"] > 0.25


def test_core_before_and_after(tiny_model, two_saes, tmp_path):
    """CE, KL and what is rebuilt agree; densities and L1 are right on the non-negative form."""
    found = {r.form: r for r in bench(two_saes[:1], tiny_model, tmp_path / "out", codes="both")}
    before, after = found["as_is"].metrics, found["non_negative"].metrics
    for name in ("ce_loss_with_sae", "kl_div_with_sae", "mse", "cossim", "l2_ratio", "l0"):
        assert after[name] == pytest.approx(before[name], rel=1e-4), name
    # independently: the codes of the very tokens that core read
    from sae_lens_isae.inputs.model_activations import text_store

    sae = load_sae(two_saes[0])
    model = load_language_model(str(tiny_model[0]), "AutoModelForCausalLM", hook_names=[HOOK])
    store = text_store(sae, model, str(tiny_model[1]), "cpu", context_size=128)
    store.shuffle_input_dataset(seed=42)
    store.get_batch_tokens(16)  # the batch for CE loss
    store.reset_input_dataset()
    tokenizer = model.tokenizer
    fired = torch.zeros(sae.cfg.d_sae)
    size, count = torch.zeros(()), 0
    special = torch.tensor([tokenizer.bos_token_id, tokenizer.eos_token_id])
    for _ in range(20):
        tokens = store.get_batch_tokens(16)
        _, cache = model.run_with_cache(tokens, names_filter=[HOOK])
        z = sae.encode(cache[HOOK][~torch.isin(tokens, special)])
        fired += (z != 0).sum(0)
        size, count = size + z.abs().sum(), count + len(z)
    assert after["frac_alive_latents"] == pytest.approx(float((fired > 0).float().mean()))
    assert after["l1"] == pytest.approx(float(size / count), rel=1e-3)
    assert before["frac_alive_latents"] < after["frac_alive_latents"]
    assert abs(before["l1"]) < after["l1"]


@pytest.mark.slow
def test_every_eval_and_saebenchs_own_plots(tiny_model, two_saes, tmp_path, few_texts, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    from sae_bench.sae_bench_utils import graphing_utils

    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail("went to the network"))
    out = tmp_path / "results"
    report = run_bench(
        two_saes,
        ALL_EVALS,
        out,
        data="offline",
        text=str(tiny_model[1]),
        stories=str(STORIES),
        autocast=True,
        **SMALL,
    )
    results = report.results
    assert {path.name for path in report.save()} >= {"bench.html", "bench.json"}
    assert set(report.table["eval"]) == set(ALL_EVALS)
    assert len(results) == 12
    for result in results:
        data = json.loads(result.path.read_text())
        note = data["sae_cfg_dict"]["isae_bench"]
        signed = result.sae.startswith("abstopk")
        unfolded = signed and result.eval in ("core", "tpp", "ce_bench")
        assert note["code_form"] == result.form == ("non_negative" if unfolded else "as_is")
        assert data["sae_cfg_dict"]["d_sae"] == 40
        assert result.metrics
    assert json.loads((out / "bench.json").read_text())[0]["path"].startswith("core/")
    assert "What the SAEs are good for" in (out / "bench.html").read_text()
    core = sorted(map(str, (out / "core").glob("*.json")))
    drawn = ("sparse_probing", "sparse_probing_sae_probes", "scr", "tpp")
    for name in drawn:
        files = sorted(map(str, (out / name).glob("*.json")))
        image = tmp_path / f"image_{name}"
        graphing_utils.plot_results(files, core, name, str(image), k=SHOWN[name])
        assert (tmp_path / f"image_{name}_2var_sae_type.png").stat().st_size > 5000
        assert (out / "plots" / f"{name}_2var_sae_type.png").stat().st_size > 5000
    # of a size that SAEBench knows its plot by size fails without markers for abstopk
    for path in out.rglob("*_eval_results.json"):
        data = json.loads(path.read_text())
        data["sae_cfg_dict"]["d_sae"] = 4096
        path.write_text(json.dumps(data))
    with pytest.raises(KeyError, match="abstopk"):
        graphing_utils.plot_results(files, core, "tpp", str(tmp_path / "image"), k=20)
    names = [Path(path).name.removesuffix("_eval_results.json") for path in core]
    pictures = plot_with_saebench(out, names, tmp_path / "elsewhere" / "plots")
    assert len(pictures) == 2 * len(drawn)
    assert {picture.parent for picture in pictures} == {tmp_path / "elsewhere" / "plots"}


@pytest.mark.slow
def test_results_do_not_depend_on_the_other_saes(tiny_model, two_saes, tmp_path, few_texts):
    evals = ("sparse_probing", "scr", "tpp")
    both = bench(two_saes, tiny_model, tmp_path / "both", evals)
    alone = bench(two_saes[1:], tiny_model, tmp_path / "alone", evals)
    assert [r.metrics for r in both if r.sae.startswith("topk")] == [r.metrics for r in alone]


def test_stopped_and_resumed(tiny_model, two_saes, tmp_path, few_texts, monkeypatch):
    evals = ("core", "sparse_probing")
    whole = bench(two_saes, tiny_model, tmp_path / "whole", evals)
    out = tmp_path / "out"
    from sae_bench.evals.sparse_probing import main

    real, calls = main.run_eval_single_dataset, []

    def stopped(*args, **kwargs):
        calls.append(args)
        # first the model's own probes; then the first SAE
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(main, "run_eval_single_dataset", stopped)
        with pytest.raises(KeyboardInterrupt):
            bench(two_saes, tiny_model, out, evals)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*_eval_results.json")}
    assert len(kept) == 3
    resumed = bench(two_saes, tiny_model, out, evals, resume=True)
    assert [r.metrics for r in resumed] == [r.metrics for r in whole]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    # with all finished no model is loaded, and other settings are not taken for these
    monkeypatch.setattr(
        "sae_lens_isae.evals.run.load_shared_model", lambda *a, **k: pytest.fail("loaded")
    )
    assert len(bench(two_saes, tiny_model, out, evals, resume=True)) == 4
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        bench(two_saes, tiny_model, out, evals, resume=True, autocast=True)
    # what only CE-bench reads does not make the others anew
    with monkeypatch.context() as patched:
        patched.setattr("sae_lens_isae.evals.run._finish", lambda task, *_: pytest.fail(task.eval))
        patched.setattr("sae_lens_isae.evals.run.load_shared_model", load_shared_model)
        with pytest.raises(pytest.fail.Exception, match="ce_bench"):
            bench(
                two_saes, tiny_model, out, (*evals, "ce_bench"), resume=True, stories=str(STORIES)
            )


def test_what_was_written_half_is_made_again(tiny_model, two_saes, tmp_path, few_texts):
    out = tmp_path / "out"
    first = bench(two_saes[1:], tiny_model, out, ["tpp"])
    (activations,) = out.rglob("99_sci_cat_activations.pt")
    (mark,) = out.rglob("99_sci_cat.done")
    partial = activations.parent / ".partial"
    partial.mkdir()
    activations.rename(partial / activations.name)
    (partial / activations.name).write_bytes(b"half")
    mark.unlink()
    again = bench(two_saes[1:], tiny_model, out, ["tpp"])
    assert [r.metrics for r in again] == [r.metrics for r in first]
    assert not partial.exists()


def test_a_full_disk_is_one_sentence(tiny_model, two_saes, tmp_path, few_texts, monkeypatch):
    out = tmp_path / "out"
    bench(two_saes[1:], tiny_model, out, ["core"])

    def full(*args, **kwargs):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"the disk is full.*finished results.*--resume"):
        bench(two_saes[1:], tiny_model, out, ["sparse_probing"])
    assert len(list(out.rglob("*_eval_results.json"))) == 1


def test_sae_probes_leaves_the_tokenizer_as_it_was():
    from sae_lens_isae.saebench.sae_probes import _unchanged_tokenizer

    tokenizer = SimpleNamespace(truncation_side="right", padding_side="left")
    with _unchanged_tokenizer(SimpleNamespace(tokenizer=tokenizer)):
        tokenizer.truncation_side = tokenizer.padding_side = "other"
    assert (tokenizer.truncation_side, tokenizer.padding_side) == ("right", "left")


def test_saes_that_do_not_fit_the_model(tiny_model, tmp_path):
    folder = save_sae(tmp_path / "deep", tiny_model[0])
    sae = load_sae(str(folder))
    sae.cfg.metadata.hook_name = "model.layers.0.self_attn"
    sae.save_model(tmp_path / "other")
    sae.cfg.metadata.hook_name = "model.layers.0.mlp.gate_proj"
    sae.save_model(tmp_path / "wide")
    with pytest.raises(ValueError, match="d_in 16, the model has 32 there"):
        bench([str(tmp_path / "wide")], tiny_model, tmp_path / "out")
    sae.cfg.metadata.hook_name = "model.layers.7"
    sae.save_model(tmp_path / "deep")
    with pytest.raises(ValueError, match=r"model\.layers\.7"):
        bench([str(tmp_path / "deep")], tiny_model, tmp_path / "out")


@pytest.mark.slow
def test_the_hubs_data_sets_run_as_saebench_has_them(tiny_model, two_saes, tmp_path, monkeypatch):
    """SAEBench's own loading and selection, on rows in the form of the hub's."""
    from sae_bench.evals.scr_and_tpp import dataset_creation
    from sae_bench.sae_bench_utils import dataset_utils

    def rows(columns, values, n):
        return {
            part: [
                dict(zip(columns, (f"{part} {value} {second} {i}", value, second), strict=True))
                for value in values
                for second in (0, 1)
                for i in range(n)
            ]
            for part in ("train", "test")
        }

    def hub(name, **kwargs):
        if name == "LabHC/bias_in_bios":
            return rows(("hard_text", "profession", "gender"), range(28), 25)
        assert name == "canrager/amazon_reviews_mcauley_1and5"
        found = rows(("text", "category", "rating"), range(34), 25)
        return {
            part: [{**row, "rating": (1.0, 5.0)[row["rating"]]} for row in some]
            for part, some in found.items()
        }

    monkeypatch.setattr(dataset_creation, "load_dataset", hub)
    monkeypatch.setattr(dataset_utils, "load_dataset", hub)
    text = str(tiny_model[1])
    evals, out = ["scr", "tpp"], tmp_path / "out"
    results = run_bench(two_saes, evals, out, data="hub", text=text, **SMALL).results
    assert len(results) == 4
    details = json.loads(results[0].path.read_text())["eval_result_details"]
    assert len(details) == 8
    assert details[0]["dataset_name"] == "LabHC/bias_in_bios_class_set1_scr_professor_nurse_results"
