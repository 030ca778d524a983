"""CE-bench by hand on codes that can be worked out, and its pairs of stories."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig

from sae_lens_isae.cebench import StoryActivations, StoryPair, ce_bench, load_pairs
from sae_lens_isae.cebench.scores import largest_difference
from sae_lens_isae.inputs.language_models import load_language_model
from tests.conftest import D_IN, isae_config, make_sae

STORIES = Path(__file__).parent / "stories.json"
HOOK = "model.layers.0"


def axes_sae(k: int = 1) -> AbsTopKSAE:
    """The code is the activation itself, its k largest coordinates."""
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=4, d_sae=4, k=k))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(4))
        sae.W_dec.copy_(torch.eye(4))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def stories_of(*activations: list[list[float]]) -> SimpleNamespace:
    """Stories with these activations, two to a pair."""

    class Stories:
        pairs = [StoryPair("a", "b", f"subject {i}") for i in range(len(activations) // 2)]  # noqa: RUF012

        def __iter__(self):
            return iter([torch.tensor(a) for a in activations])

    return Stories()


def test_scores_worked_out_by_hand():
    # pair 0: V1 = (2, 0, 0, 0), V2 = (0, 1, 0, 0); pair 1: V1 = V2 = (0, 0, 4, 0)
    stories = stories_of(
        [[1.0, 0, 0, 0], [3, 0, 0, 0]],
        [[0.0, 1, 0, 0]],
        [[0.0, 0, 4, 0]],
        [[0.0, 0, 4, 0]],
    )
    found = ce_bench(axes_sae(), stories)
    # C: |V1 - V2| at most 2 of a span of 2, and 0
    assert found.contrastive == pytest.approx((2 / 2 + 0) / 2)
    # I1 = (2, 1, 0, 0) and (0, 0, 8, 0), mean (1, .5, 4, 0): differences of 4 over spans of 4 and 8
    assert found.independence == pytest.approx((4 / 4 + 4 / 8) / 2)
    assert found.sparsity == pytest.approx(1 / 4)
    assert found.total == pytest.approx(0.5 + 0.75 - 0.25 / 4)
    assert found.by_subject["subject 1"] == (0.0, pytest.approx(0.5))
    assert found.health.dead_fraction == pytest.approx(1 / 4)


def test_a_latent_that_fires_with_both_signs_does_not_cancel():
    stories = stories_of(
        [[3.0, 0, 0, 0], [-3, 0, 0, 0]],
        [[0.0, 1, 0, 0], [0, 1, 0, 0]],
        [[0.0, 1, 0, 0]],
        [[0.0, 1, 0, 0]],
    )
    # V1 = 0 as it is, so that the difference is that of the second coordinate alone
    assert ce_bench(axes_sae(), stories, "as_is").contrastive == pytest.approx((1 + 0) / 2)
    unfolded = ce_bench(axes_sae(), stories)
    # V1 = 1.5 in either direction, V2 = 1
    assert unfolded.contrastive == pytest.approx((1.5 / 1.5 + 0) / 2)
    assert unfolded.sparsity == ce_bench(axes_sae(), stories, "as_is").sparsity


def test_scores_do_not_depend_on_the_scale_of_codes():
    a, b = torch.rand(5, 7), torch.rand(5, 7)
    expected = largest_difference(a, b)
    torch.testing.assert_close(largest_difference(30 * a, 30 * b), expected)
    torch.testing.assert_close(largest_difference(a - 2, b - 2), expected)
    assert (expected <= 1).all()
    assert largest_difference(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0


def test_activations_are_read_once(tiny_model, tmp_path, monkeypatch):
    model = load_language_model(str(tiny_model[0]), "AutoModelForCausalLM", hook_names=[HOOK])
    pairs = load_pairs(str(STORIES))
    assert [pair.subject for pair in pairs][:2] == ["weather", "school"]
    stories = StoryActivations(model, HOOK, pairs, tmp_path / "kept")
    first = list(stories)
    tokenizer = model.tokenizer
    tokens = [tokenizer.bos_token_id, *tokenizer(pairs[1].story2).input_ids]
    _, cache = model.run_with_cache(torch.tensor([tokens]), names_filter=[HOOK])
    torch.testing.assert_close(first[3], cache[HOOK][0, 1:], atol=1e-5, rtol=1e-5)
    assert first[3].shape[1] == D_IN

    def fail(*args, **kwargs):
        raise AssertionError("the model ran again")

    monkeypatch.setattr(model, "run_with_cache", fail)
    assert all(torch.equal(a, b) for a, b in zip(first, stories, strict=True))


def test_bad_pairs_are_one_sentence(tmp_path, monkeypatch):
    rows = json.loads(STORIES.read_text())
    for name, content, message in (
        ("none.json", "[]", "no column story1"),
        ("one.json", json.dumps(rows[:1]), "1 pairs, independence needs two"),
        ("broken.json", "[{", "cannot be read"),
        ("empty.json", json.dumps([rows[0], {**rows[1], "story2": " "}]), "pair 2 has an empty"),
        ("title.json", json.dumps([{"story1": "a", "story2": "b"}]), "no column subject_title"),
        ("pairs.txt", "a", "must be .json, .jsonl or .csv"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            load_pairs(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="there is no file of stories"):
        load_pairs(str(tmp_path / "missing.csv"))

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("sae_lens_isae.cebench.stories.load_dataset", offline)
    with pytest.raises(FileNotFoundError, match="--stories"):
        load_pairs()


def test_formats_and_both_names_of_the_subject(tmp_path):
    rows = [{"story1": "a b", "story2": "c d", "subject": str(i)} for i in range(3)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "p.csv").write_text("story1,story2,subject\na b,c d,0\na b,c d,1\na b,c d,2\n")
    assert load_pairs(str(tmp_path / "p.jsonl")) == load_pairs(str(tmp_path / "p.csv"))
    assert len(load_pairs(str(tmp_path / "p.csv"), most=2)) == 2


@pytest.mark.parametrize("order", ["as given", "turned round"])
def test_scores_do_not_depend_on_the_saes_beside(tiny_model, tmp_path, order):
    """SAEs that read stories with and without a token in front have activations of their own; so
    have those in float64, and those whose names differ by a slash."""
    pytest.importorskip("sae_bench")
    from sae_lens_isae import bench

    names = []
    for name, prepend_bos in (("a_b", True), ("a/b", False), ("double", True)):
        sae = make_sae(isae_config("AbsTopK"))
        sae.cfg.metadata.__dict__ |= {
            "model_name": str(tiny_model[0]),
            "model_class_name": "AutoModelForCausalLM",
            "hook_name": HOOK,
            "prepend_bos": prepend_bos,
            "context_size": 16,
        }
        sae.save_inference_model(tmp_path / name)
        names.append(str(tmp_path / name))
    config = tmp_path / "double" / "cfg.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float64"}))
    names = names if order == "as given" else names[::-1]

    def scores(saes, out):
        found = bench(saes, ["ce_bench"], tmp_path / out, stories=str(STORIES)).results
        assert len({result.path for result in found}) == len(saes)
        return [result.metrics for result in found]

    alone = [scores([name], f"alone_{i}")[0] for i, name in enumerate(names)]
    assert scores(names, "together") == alone
    assert len({round(metrics["ce_total"], 6) for metrics in alone}) == 2
