"""A language model and prompts whose answers are known."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.language_models import check_hook, context_length
from sae_lens_isae.inputs.shared_model import load_shared_model
from sae_lens_isae.inputs.token_text import TokenText, token_text
from sae_lens_isae.progress import progress_bar
from sae_lens_isae.recoding.prompts import DEFAULT_PROMPTS, Prompt, load_prompts

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


_NO_TOKEN = -1
"""Before the beginning of a prompt."""


@dataclass(frozen=True)
class Predictions:
    """What the model says at the last position of some prompts."""

    probability: Float[torch.Tensor, " prompts"]
    """Of the right answer."""
    token: Int[torch.Tensor, " prompts"]
    """The most probable one."""


class PromptedModel:
    """A language model and prompts whose answers are known."""

    def __init__(
        self,
        model: HookedRootModule,
        tokens: Sequence[Int[torch.Tensor, " position"]],
        answers: Int[torch.Tensor, " prompts"],
        *,
        autocast: bool = False,
        batch_size: int = 128,
        description: str = "prompts",
        prompts: Sequence[Prompt] = (),
    ) -> None:
        """
        Args:
            model: Any that SAELens trains on: HookedTransformer, a bridge, HookedProxyLM.
            tokens: Of each prompt, with what the SAE saw in front.
            answers: The token that should come next.
            autocast: Run the model in bfloat16 where torch's autocast does.
            description: Of model and prompts, for the report.
            prompts: What the tokens were made of, where there is such a thing.
        """
        self.prompts = list(prompts)
        self.description = description
        self.model = model
        self.tokens = list(tokens)
        self.answers = answers
        self._autocast = autocast
        self._batch_size = batch_size
        self._device = next(model.parameters()).device
        self.seconds_per_prompt = 0.0
        """Of the model, on average over the prompts when they were read."""
        self._activations: dict[str, torch.Tensor] = {}
        self._answers: Predictions | None = None

    @classmethod
    def from_prompts(
        cls,
        model: HookedRootModule,
        prompts: Sequence[Prompt],
        *,
        prepend_bos: bool = True,
        autocast: bool = False,
        description: str = "prompts",
    ) -> PromptedModel:
        """Tokenise prompts; an answer is known by its first token that is more than white space.

        Raises:
            InputError: A prompt is longer than the model reads.
        """
        tokenizer: Any = model.tokenizer
        longest = context_length(model)
        bos = [tokenizer.bos_token_id] if prepend_bos and tokenizer.bos_token_id is not None else []
        tokens: list[torch.Tensor] = []
        answers: list[int] = []
        for prompt in prompts:
            front = tokenizer(prompt.text, add_special_tokens=False).input_ids
            gap = "" if prompt.text[-1].isspace() else " "
            whole = tokenizer(prompt.text + gap + prompt.answer, add_special_tokens=False).input_ids
            if whole[: len(front)] == front and len(whole) > len(front):
                after = whole[len(front) :]
            else:
                after = tokenizer(gap + prompt.answer, add_special_tokens=False).input_ids
            while len(after) > 1 and not tokenizer.decode(after[:1]).strip():
                front, after = [*front, after[0]], after[1:]
            if len(bos + front) > longest:
                raise InputError(
                    f"prompt {len(tokens) + 1} has {len(bos + front)} tokens, and the model reads "
                    f"{longest}; shorten it or leave it out: {prompt.text[:60]!r}"
                )
            tokens.append(torch.tensor(bos + front))
            answers.append(after[0])
        return cls(
            model,
            tokens,
            torch.tensor(answers),
            autocast=autocast,
            description=description,
            prompts=prompts,
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def correct(self) -> Bool[torch.Tensor, " prompts"]:
        """Which prompts the model answers."""
        return self.unchanged().token == self.answers

    def unchanged(self) -> Predictions:
        """The answers of the model as it is."""
        if self._answers is None:
            self.read([])
        assert self._answers is not None
        return self._answers

    def what_it_says(self) -> list[torch.Tensor]:
        """Tokens, right answers and the model's own: equal for equal models and prompts."""
        unchanged = self.unchanged()
        return [*self.tokens, self.answers, unchanged.probability, unchanged.token]

    def activations(self, hook_name: str) -> Float[torch.Tensor, "prompts d_in"]:
        """At the last position of every prompt.

        Raises:
            InputError: The model has no such hook.
        """
        if hook_name not in self._activations:
            self.read([hook_name])
        return self._activations[hook_name]

    @torch.no_grad()
    def replaced(
        self,
        hook_name: str,
        prompts: Int[torch.Tensor, " runs"],
        activations: Float[torch.Tensor, "runs d_in"],
        progress: tqdm[Any] | None = None,
    ) -> Predictions:
        """Run prompts with another activation at the last position of a hook."""
        probability = torch.zeros(len(prompts))
        token = torch.zeros(len(prompts), dtype=torch.long)
        for rows, batch in self._batches(prompts):
            new = activations[rows.to(activations.device)]

            def replace(value: torch.Tensor, hook: object, new: torch.Tensor = new) -> torch.Tensor:  # noqa: ARG001
                value = value.clone()
                value[:, -1] = new.to(value).view_as(value[:, -1])
                return value

            with self._precision():
                logits: Any = self.model.run_with_hooks(
                    batch, fwd_hooks=[(hook_name, replace)], return_type="logits"
                )
            probability[rows], token[rows] = self._read(logits, prompts[rows])
            if progress is not None:
                progress.update(len(rows))
        return Predictions(probability, token)

    @torch.no_grad()
    def read(self, hook_names: Sequence[str]) -> None:
        """Run all prompts once and keep the activations of several hooks, and the answers.

        Raises:
            InputError: The model has no such hook.
        """
        for name in hook_names:
            check_hook(self.model, name)
        probability = torch.zeros(len(self))
        token = torch.zeros(len(self), dtype=torch.long)
        found: dict[str, torch.Tensor] = {}
        start = time.perf_counter()
        with progress_bar(total=len(self), desc="Prompts", unit="prompt", leave=False) as progress:
            for rows, batch in self._batches(torch.arange(len(self))):
                with self._precision():
                    logits, cache = self.model.run_with_cache(
                        batch, names_filter=list(hook_names), return_type="logits"
                    )
                probability[rows], token[rows] = self._read(logits, rows)
                for name in hook_names:
                    last = cache[name][:, -1].flatten(1).float()
                    kept = found.setdefault(name, last.new_zeros(len(self), last.shape[1]))
                    kept[rows.to(kept.device)] = last
                progress.update(len(rows))
        self.seconds_per_prompt = (time.perf_counter() - start) / max(1, len(self))
        self._activations |= found
        self._answers = Predictions(probability, token)

    def text(self) -> TokenText | None:
        """The prompts, each the context of its last token; None without a tokenizer."""
        flat = torch.cat(self.tokens)[None]
        known = token_text(self.model.tokenizer, flat, torch.arange(flat.numel()))
        if known is None:
            return None
        size = max(map(len, self.tokens))
        token_ids = torch.full((len(self), size), _NO_TOKEN)
        for row, tokens in enumerate(self.tokens):
            token_ids[row, size - len(tokens) :] = tokens
        last = torch.arange(1, len(self) + 1) * size - 1
        return TokenText(token_ids, last, {**known.strings, _NO_TOKEN: ""})

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast)

    def _batches(
        self, prompts: Int[torch.Tensor, " runs"]
    ) -> list[tuple[Int[torch.Tensor, " batch"], Int[torch.Tensor, "batch position"]]]:
        """Prompts of one length together, so that nothing is padded."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompts.tolist()):
            by_length[len(self.tokens[prompt])].append(row)
        return [
            (rows, torch.stack([self.tokens[int(prompts[r])] for r in rows]).to(self._device))
            for members in by_length.values()
            for rows in torch.tensor(members).split(self._batch_size)
        ]

    def _read(
        self, logits: torch.Tensor, prompts: Int[torch.Tensor, " batch"]
    ) -> tuple[Float[torch.Tensor, " batch"], Int[torch.Tensor, " batch"]]:
        last = logits[:, -1].float().softmax(-1).cpu()
        return last.gather(1, self.answers[prompts, None])[:, 0], last.argmax(-1)


def prompted_model(
    saes: Sequence[SAE[Any]],
    prompts: Sequence[Prompt] | None = None,
    *,
    model: str | None = None,
    device: str | None = None,
    autocast: bool = False,
    trust_remote_code: bool = False,
) -> PromptedModel:
    """The model that SAEs were trained on, and prompts for it.

    Args:
        prompts: See `load_prompts`; by default simple facts that come with this package.
        model: In place of the one in the SAEs' metadata.
        device: By default where the SAEs are.
        autocast: Run the model in bfloat16.
        trust_remote_code: Let the metadata name code that loads the model.

    Raises:
        InputError: The model cannot be loaded, or a prompt is too long for it.
    """
    read = load_prompts(DEFAULT_PROMPTS) if prompts is None else prompts
    shared, loaded = load_shared_model(
        saes, model, device or str(saes[0].device), trust_remote_code=trust_remote_code
    )
    return PromptedModel.from_prompts(
        loaded,
        read,
        prepend_bos=saes[0].cfg.metadata.prepend_bos is not False,
        autocast=autocast,
        description=f"last position of {len(read)} prompts, {shared.name}",
    )
