"""The routers' loss terms of a Mixture-of-Experts, and their updates between steps. Dense models have neither.

    + balance_loss_weight      * CV^2(importance) + CV^2(load)                       moe/balance.py
    + gate_budget_weight       * (mean m - m*)^2                   shared_gate token
    + router_entropy_weight    * mean H(s)                         routing top_p,    from a tenth of the steps on
    + diversity_weight         * L_div                             moe/diversity.py, from a tenth of the steps on
    - score_variance_weight    * mean_t Var_i(s_ti)                                  from a tenth of the steps on

Terms of a whole step (the balance loss with balance_scope step, the budget) use the sums over the step's passes so far, of
which only the latest has a gradient (arXiv 2501.11873): F(sum so far) times the share of the tokens so far. The sums follow the
order of the passes in one process, whichever process runs them. Shape suffixes: L layers, T tokens, X sampled tokens.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch

from xft_core.data.packing import IGNORED
from xft_core.errors import RecipeError
from xft_core.moe.balance import RouterStatistics, counts, move_bias, unevenness, usage
from xft_core.moe.experts import MoeBlock
from xft_core.moe.router import Routing
from xft_core.moe.top_p import steer
from xft_core.recipe.sections import SftConfig
from xft_core.runtime.group import number_of_processes, process_number, summed

SAMPLED_TOKENS = 256  # of a step, for the losses on samples
GATE_TARGET_START, GATE_WEIGHT_AFTERWARDS = 0.4, 0.1  # of shared_gate_start, of gate_budget_weight
LOSSES = ("balance_loss", "gate_budget_loss", "diversity_loss", "score_variance")


class RouterTerms:
    """The terms of one training. For each step, call ``begin_step``, then ``begin_pass`` and ``loss`` for each pass, then
    ``end_step``."""

    def __init__(self, blocks: Sequence[MoeBlock], sft: SftConfig, steps: int) -> None:
        """``steps``: of the whole training. Raises RecipeError if the model's routers do not fit ``sft``."""
        self.blocks, self.sft, self.steps = blocks, sft, steps
        self.upcycle = blocks[0].router.upcycle
        if conflict := sft.conflict_with(self.upcycle):
            raise RecipeError(f"{conflict}.")
        for block in blocks:
            block.router.dense_gradient = sft.router_gradient == "dense"
        self.statistics = self._no_statistics()
        self._found: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # sum and number of the measured values
        self._added, self._steps_seen = 0.0, 0

    def begin_step(self, number: int, passes: int, tokens: int, responses: int) -> None:
        """Begin step ``number``, from 1, with its non-empty passes, tokens and response tokens in all processes."""
        self._number, self._passes, self._num_tokens, self._responses = number, passes, tokens, responses
        self._sums: dict[str, torch.Tensor] = {}
        self._counts_LR: torch.Tensor | None = None
        self._steps_seen += 1

    def begin_pass(self, labels_BS: torch.Tensor) -> None:
        """Prepare for the forward pass of a batch with these labels."""
        self._answers_T = answers(labels_BS)
        self._sampled_X = None
        if self._is_late() and (self.sft.diversity_weight or self.sft.score_variance_weight):
            self._sampled_X = evenly_chosen(self._answers_T, max(1, SAMPLED_TOKENS // self._passes))
        for block in self.blocks:
            block.keep_routing = True
            block.overlap_tokens_X = self._sampled_X if self.sft.diversity_weight else None

    def loss(self, routings: list[Routing], token_mask_T: torch.Tensor, count_statistics: bool) -> torch.Tensor:
        """The weighted terms of one pass. Their sum over the passes of all processes is the step's."""
        if count_statistics:
            self.statistics.add(routings, token_mask_T)
        loss = self._balance(routings, token_mask_T)
        others = [*self._of_samples(routings)]
        if self.upcycle.shared_gate == "token" and self.upcycle.shared_expert and self.sft.gate_budget_weight:
            others.append(self._gate_budget(routings))
        if self.upcycle.routing == "top_p" and self.upcycle.router == "learned" and self._is_late():
            others.append(self.sft.router_entropy_weight * entropy(routings, token_mask_T) / self._num_tokens)
        if self.upcycle.routing == "top_p" or self.sft.balance == "bias":
            counts_LR = counts(routings, token_mask_T, self.upcycle.shared_expert)
            self._counts_LR = counts_LR if self._counts_LR is None else self._counts_LR + counts_LR
        for term in others:
            self._added += float(term.detach())
            loss = loss + term
        return loss

    def end_step(self) -> None:
        """Apply the routers' own updates after the optimizer's step. Every process must call it."""
        for block in self.blocks:
            block.overlap_tokens_X = None
        if self._counts_LR is None:
            return
        counts_LR, routers = summed(self._counts_LR), [block.router for block in self.blocks]
        if self.sft.balance == "bias":
            move_bias(routers, counts_LR)
        if self.upcycle.routing == "top_p":
            steer(routers, int(counts_LR.sum()) / len(routers) / self._num_tokens)

    def take_values(self) -> tuple[dict[str, float], float]:
        """The values measured since the last call, by the names of the curve, and the weighted terms in a step's loss, averaged
        over those steps. Every process must call it."""
        kept = torch.tensor([*(self._found[name] for name in LOSSES), [self._added, 0.0]], dtype=torch.float64)
        sums = summed(kept).tolist()
        values = {name: total / number for name, (total, number) in zip(LOSSES, sums, strict=False) if number}
        added = sums[-1][0] / max(1, self._steps_seen)
        if self.sft.balance_scope == "micro_batch" and "balance_loss" in values:
            added += self.sft.balance_loss_weight * values["balance_loss"]
        self.statistics.sum_over_processes()
        if self.statistics.tokens:
            values |= self.statistics.summary()
            if self.upcycle.routing == "top_p":
                layers = self.statistics.layers()
                values["mean_active_experts"] = sum(layer.mean_active for layer in layers) / len(layers)
        if self.blocks[0].router.top_p is not None:
            values["top_p"] = float(self.blocks[0].router.top_p[0])
        self.statistics = self._no_statistics()
        self._found.clear()
        self._added, self._steps_seen = 0.0, 0
        return values, added

    def _balance(self, routings: list[Routing], token_mask_T: torch.Tensor) -> torch.Tensor:
        if self.sft.balance == "bias":
            return token_mask_T.new_zeros((), dtype=torch.float32)
        usage_L2R = usage(routings, token_mask_T, self.upcycle.shared_expert)
        if self.upcycle.router != "learned":  # the gate must not balance either
            usage_L2R = usage_L2R.detach()
        weight = self.sft.balance_loss_weight
        if self.sft.balance_scope == "step":
            so_far_L2R, share = self._so_far("balance", usage_L2R, int(token_mask_T.sum()), self._num_tokens)
            return self._noted("balance_loss", unevenness(so_far_L2R, self.sft.balance_loss_reduction), weight, share)
        balance = unevenness(usage_L2R, self.sft.balance_loss_reduction)
        if token_mask_T.any():
            self._note("balance_loss", float(balance.detach()))
        return balance * (weight / self._passes)

    def _gate_budget(self, routings: list[Routing]) -> torch.Tensor:
        """Squared distance of m's mean over the step's response tokens so far from its target, mean over layers."""
        shared_L = torch.stack([item.weight_TK[self._answers_T, -1].sum() for item in routings])
        num_answers = int(self._answers_T.sum())
        so_far_L, share = self._so_far("gate", num_answers - shared_L, num_answers, self._responses)
        progress = 3 * (self._number - 1) / self.steps
        target = self.upcycle.shared_gate_start * (GATE_TARGET_START + (1 - GATE_TARGET_START) * min(1.0, progress))
        weight = self.sft.gate_budget_weight * (1.0 if progress < 1 else GATE_WEIGHT_AFTERWARDS)
        mean_L = so_far_L / max(1.0, share * self._responses)
        return self._noted("gate_budget_loss", (mean_L - target).square().mean(), weight, share)

    def _of_samples(self, routings: list[Routing]) -> list[torch.Tensor]:
        if self._sampled_X is None:
            return []
        terms = []
        if self.sft.diversity_weight:
            found = torch.stack([item.overlap for item in routings if item.overlap is not None]).mean()
            terms.append(self._of_pass("diversity_loss", found, self.sft.diversity_weight))
        if self.sft.score_variance_weight:
            found = score_variance(routings, self._sampled_X)
            terms.append(self._of_pass("score_variance", found, -self.sft.score_variance_weight))
        return terms

    def _of_pass(self, name: str, value: torch.Tensor, weight: float) -> torch.Tensor:
        if self._answers_T.any():
            self._note(name, float(value.detach()))
        return value * (weight / self._passes)

    def _so_far(self, name: str, own: torch.Tensor, number: int, total: int) -> tuple[torch.Tensor, float]:
        """The sum of ``own`` over the passes of this step up to this one, in the order of one process, and the share of
        ``total`` that their ``number`` adds up to. Only ``own`` has a gradient. Every process must call it."""
        rows = own.new_zeros(number_of_processes(), own.numel() + 1, dtype=torch.float64)
        rows[process_number(), :-1], rows[process_number(), -1] = own.detach().flatten(), number
        rows = summed(rows)
        before = self._sums.get(name, torch.zeros_like(rows[0]))
        self._sums[name] = before + rows.sum(0)
        before = before + rows[:process_number()].sum(0)
        return own + before[:-1].view_as(own).to(own.dtype), (float(before[-1]) + number) / max(1, total)

    def _noted(self, name: str, value: torch.Tensor, weight: float, share: float) -> torch.Tensor:
        """The term of a value over the step so far. The value is noted once that is the whole step."""
        if share == 1:
            self._note(name, float(value.detach()))
        term = value * (weight * share)
        if name == "balance_loss":
            self._added += float(term.detach())
        return term

    def _note(self, name: str, value: float) -> None:
        self._found[name][0] += value
        self._found[name][1] += 1

    def _is_late(self) -> bool:
        """Whether the first tenth of the steps is over."""
        return self._number > self.steps / 10

    def _no_statistics(self) -> RouterStatistics:
        return RouterStatistics(len(self.blocks), self.upcycle.num_experts, self.upcycle.shared_expert)


def answers(labels_BS: torch.Tensor) -> torch.Tensor:
    """Whether each token predicts a response token, shape T."""
    predicts_BS = torch.zeros_like(labels_BS, dtype=torch.bool)
    predicts_BS[:, :-1] = labels_BS[:, 1:] != IGNORED
    return predicts_BS.reshape(-1)


def evenly_chosen(where_T: torch.Tensor, number: int) -> torch.Tensor:
    """At most ``number`` of the places in ``where_T``, evenly spaced and always the same."""
    places = where_T.nonzero()[:, 0]
    if len(places) <= number:
        return places
    return places[torch.arange(number, device=places.device) * len(places) // number]


def entropy(routings: list[Routing], token_mask_T: torch.Tensor) -> torch.Tensor:
    """Entropy of s in nats, summed over the tokens that count, mean over layers."""
    log_LTR = torch.stack([torch.log_softmax(item.logits_TR[token_mask_T], dim=-1) for item in routings])
    return -(log_LTR.exp() * log_LTR).sum() / len(routings)


def score_variance(routings: list[Routing], tokens_X: torch.Tensor) -> torch.Tensor:
    """Variance of s over the experts, mean over some tokens and over layers; 0 without tokens."""
    s_LXR = torch.stack([torch.softmax(item.logits_TR[tokens_X], dim=-1) for item in routings])
    return (s_LXR - 1 / s_LXR.shape[2]).square().mean(2).sum() / len(routings) / max(1, len(tokens_X))
