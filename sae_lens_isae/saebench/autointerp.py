"""SAEBench's `autointerp` with any judge, and beside it what the judge says of wrong explanations.

A judge explains a latent from texts that it is active on, and picks, from its explanation alone,
the texts on which the latent is active among others. Its score is the share of right picks. Most of
the texts are inactive, so that a judge which picks none has 10 of 14 right: the score means
something beside that of the same judge with another latent's explanation, which is measured too.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from jaxtyping import Int
from sae_lens import SAE

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.model_activations import text_store
from sae_lens_isae.saebench.adapter import SAEBenchAdapter
from sae_lens_isae.saebench.context import EvalContext
from sae_lens_isae.saebench.installed import module
from sae_lens_isae.saebench.judge import Judge, KeptAnswers, Messages
from sae_lens_isae.saebench.upstream import contained

REQUESTS_PER_LATENT = 3
"""An explanation, picks, and picks from another latent's explanation."""
TOKENS_PER_REQUEST = 800
"""About: instructions, and 14 or 15 texts of 21 tokens with their marks."""
_CONTEXT = 128
_SURE = 2.0
"""Standard errors by which a judge must do better than on wrong explanations."""
_MOST_UNREADABLE = 0.2


@dataclass(frozen=True)
class Judging:
    """Who judges what."""

    judge: Judge
    answers: Path
    """Folder for every question and answer."""
    latents: tuple[int, ...] | None = None
    """Which are judged, in the form that the eval takes; by default alive ones, drawn."""


def run_autointerp(
    context: EvalContext, sae: SAE[Any], adapter: SAEBenchAdapter, name: str
) -> dict[str, Any]:
    """Explain latents and score the explanations; the result as SAEBench lays it out."""
    judging = context.judging
    assert judging is not None
    judge = KeptAnswers(judging.judge, judging.answers / f"{name}_answers.jsonl")
    with contained():
        interp = _interp(context, sae, adapter, judging, judge)
        found = interp.judged()
        if len(found) < 2:
            raise InputError(
                f"{name}: {len(found)} latents could be judged; the text has too few tokens, or "
                f"the judge {judge.name} answers nothing that can be read ({judging.answers})"
            )
        wrong = _moved([found[latent]["explanation"] for latent in sorted(found)])
        control = interp.judged(dict(zip(sorted(found), wrong, strict=True)))
    gains = [found[n]["score"] - control[n]["score"] for n in sorted(found) if n in control]
    right = [row["score"] for row in found.values()]
    return {
        "eval_type_id": "autointerp",
        "eval_config": {**interp.cfg.__dict__, "judge": judge.name},
        "eval_result_metrics": {
            "autointerp": scores(right, gains, 1 - len(found) / interp.n_asked)
        },
        "eval_result_details": [],
        "eval_result_unstructured": {
            str(latent): {**row, "control_score": control.get(latent, {}).get("score")}
            for latent, row in found.items()
        },
    }


def _interp(
    context: EvalContext,
    sae: SAE[Any],
    adapter: SAEBenchAdapter,
    judging: Judging,
    judge: KeptAnswers,
) -> Any:
    """SAEBench's object, with the text and the latents to judge."""
    main = module("sae_bench.evals.autointerp.main")
    collection = module("sae_bench.sae_bench_utils.activation_collection")
    settings = context.settings
    chosen = None if judging.latents is None else list(judging.latents)
    config = main.AutoInterpEvalConfig(
        model_name=context.model_key,
        n_latents=settings.judged_latents if chosen is None else None,
        override_latents=chosen,
        random_seed=settings.seed,
        dataset_name=context.data.text,
        llm_context_size=_CONTEXT,
        llm_batch_size=settings.llm_batch_size,
        llm_dtype=str(next(context.model.parameters()).dtype).removeprefix("torch."),
        total_tokens=settings.judged_tokens,
    )
    tokens = _tokens(context, sae)
    model = _Readable(context.model)
    sparsity = collection.get_feature_activation_sparsity(
        tokens,
        model,
        adapter,
        config.llm_batch_size,
        adapter.cfg.hook_layer,
        adapter.cfg.hook_name,
        mask_bos_pad_eos_tokens=True,
    )
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    return _asked(main, judge)(
        cfg=config,
        model=model,
        sae=adapter,
        tokenized_dataset=tokens,
        sparsity=sparsity,
        device=context.device,
        api_key="",
    )


def scores(right: Sequence[float], gains: Sequence[float], unreadable: float) -> dict[str, float]:
    """The numbers of the table.

    Args:
        right: The score of every latent.
        gains: The score less that with a wrong explanation, where both could be read.
        unreadable: Share of the latents for which the judge's picks could not be read.
    """
    spread = stdev(gains) if len(gains) > 1 else math.nan
    return {
        "autointerp_score": mean(right),
        "autointerp_std_dev": stdev(right),
        "above_control": mean(gains) if gains else math.nan,
        "above_control_error": spread / math.sqrt(max(1, len(gains))),
        "unreadable": unreadable,
        "n_judged": len(right),
    }


def judge_note(metrics: dict[str, float]) -> str | None:
    """What is wrong with a judge, if its scores say so."""
    if metrics["unreadable"] > _MOST_UNREADABLE:
        return (
            f"the judge's answers could not be read for {metrics['unreadable']:.0%} of the latents"
        )
    gain, error = metrics["above_control"], metrics["above_control_error"]
    if not gain > _SURE * error:
        return (
            "the judge does no better with the right explanations than with those of other latents "
            f"({gain:+.3f} ± {error:.3f}): its scores say nothing of the latents"
        )
    return None


def _moved(explanations: list[str]) -> list[str]:
    """Every explanation at the next one's place."""
    return [*explanations[1:], explanations[0]]


def _tokens(context: EvalContext, sae: SAE[Any]) -> Int[torch.Tensor, "contexts context"]:
    n = max(2, context.settings.judged_tokens // _CONTEXT)
    store = text_store(
        sae, context.model, context.data.text, context.device, n * _CONTEXT, _CONTEXT
    )
    parts: list[torch.Tensor] = []
    while sum(map(len, parts)) < n:
        parts.append(store.get_batch_tokens())
    return torch.cat(parts)[:n]


class _Readable:
    """A model as SAEBench asks for activations and for tokens in words; SAELens' wrapper of models
    that are not TransformerLens' knows lists of hooks only, and no words."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.tokenizer: Any = model.tokenizer

    def run_with_cache(
        self, tokens: torch.Tensor, *, names_filter: str, **settings: Any
    ) -> tuple[Any, Any]:
        return self._model.run_with_cache(tokens, names_filter=[names_filter], **settings)

    def to_str_tokens(self, tokens: Int[torch.Tensor, " tokens"]) -> list[str]:
        return self.tokenizer.batch_decode([[token] for token in tokens.tolist()])


class _Picks(list[dict[str, str]]):
    """A conversation that asks for the numbers of texts."""


def _asked(main: Any, judge: Judge) -> Any:
    """SAEBench's class, asking a judge in place of one company's."""

    class Asked(main.AutoInterp):
        """The examples are gathered once: the control asks about the same."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self._gathered: Any = None
            self._failure: InputError | None = None
            self.n_asked = 0

        def judged(self, explanations: dict[int, str] | None = None) -> dict[int, dict[str, Any]]:
            """What is found for every latent, with these explanations in place of the judge's."""
            found = asyncio.run(self.run(explanations_override=explanations or {}))
            if self._failure is not None:
                raise self._failure
            return found

        def gather_data(self) -> Any:
            if self._gathered is None:
                self._gathered = super().gather_data()
                self.n_asked = max(1, len(self._gathered[0]))
            return self._gathered

        def get_scoring_prompts(self, explanation: str, scoring_examples: Any) -> Any:
            # an example in the instructions is drawn, and answers come in no fixed order
            state = random.getstate()
            random.seed(f"{explanation}{[example.toks for example in scoring_examples]}")
            try:
                return _Picks(super().get_scoring_prompts(explanation, scoring_examples))
            finally:
                random.setstate(state)

        def get_api_response(
            self, messages: Messages, max_tokens: int, n_completions: int = 1
        ) -> tuple[list[str], str]:
            del n_completions
            answer = ""
            # raised once all are through: one that fails leaves the others behind unfinished
            if self._failure is None:
                try:
                    picks = isinstance(messages, _Picks)
                    answer = judge.answer(messages, max_tokens, picks=picks)
                except InputError as error:
                    self._failure = error
            said = [*messages, {"role": "assistant", "content": answer}]
            return [answer], "\n".join(f"{m['role']}: {m['content']}" for m in said)

    return Asked
