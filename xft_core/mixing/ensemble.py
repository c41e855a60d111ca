"""Ensembles of whole dense models, attention and embeddings included: theta = sum_m beta_m theta_m, beta in the simplex.

    greedy     members by their loss on selection rows; each joins the running mean if that lowers it (arXiv 2203.05482)
    learned    beta = softmax(b), by Adam from equal shares; dL/dbeta_m = <dL/dtheta, theta_m>, one tensor at a time

The best measured mean is taken: on the selection rows, greedy is never worse than its best member, and learned is never worse
than equal shares. Every measurement is on disk when it ends, and is not repeated after a kill.
Shape suffixes: M members.
"""

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.rows import Rows
from xft_core.errors import CheckpointError
from xft_core.files.journal import append, read_appended
from xft_core.models.config import dense_config_of, is_moe
from xft_core.models.discovery import family_of
from xft_core.models.loading import load_model
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.runtime.progress import describe_progress
from xft_core.training.held_out import TOKENS_PER_BATCH, check_rows_fit
from xft_core.training.response_loss import response_loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """The weight of every member (they sum to 1), the loss on the selection rows, and the loss of each member alone (greedy)
    or of equal shares (learned, under the name "equal shares")."""

    weights: dict[str, float]
    nll: float
    measured: dict[str, float]


class Members:
    """Dense models of one form, and a model in memory whose weights are set to means of their weights. A context manager.

    Raises CheckpointError for a Mixture-of-Experts and for models that differ in form.
    """

    def __init__(self, sources: Mapping[str, Path], dtype: torch.dtype, device: torch.device) -> None:
        self.names, self._stack = list(sources), ExitStack()
        self.readers: list[CheckpointReader] = []
        for directory in sources.values():
            if is_moe(directory):
                raise CheckpointError(
                    f"{str(directory)!r} is a Mixture-of-Experts. Only dense models can form an ensemble: merge it first.")
            self.readers.append(self._stack.enter_context(CheckpointReader(directory)))
            dense_config_of(self.readers[-1])  # gives tensors the family's names
        self.model: PreTrainedModel = load_model(list(sources.values())[-1], dtype).to(device)  # type: ignore[arg-type]
        self.model.requires_grad_(False)
        family = family_of(self.model.config)
        self.parameters = {family.stored_name(name): parameter for name, parameter in self.model.named_parameters()}
        for name, parameter in self.parameters.items():
            for reader in self.readers:
                found = reader.shape(name) if name in reader else "missing"
                if found != list(parameter.shape):
                    raise CheckpointError(
                        f"Models of different forms cannot form an ensemble: {name!r} is {list(parameter.shape)} in "
                        f"{str(self.readers[-1].directory)!r} and {found} in {str(reader.directory)!r}.")

    def __enter__(self) -> "Members":
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    @torch.no_grad()
    def apply(self, beta_M: torch.Tensor) -> None:
        """Set the model to sum_m beta_m theta_m, summed in fp64 and rounded once."""
        for name, parameter in self.parameters.items():
            total = torch.zeros(parameter.shape, dtype=torch.float64, device=parameter.device)
            for reader, share in zip(self.readers, beta_M.tolist(), strict=True):
                if share:
                    total += reader.get(name).to(parameter.device).double() * share
            parameter.copy_(total)

    def gradient(self) -> torch.Tensor:
        """dL/dbeta from the parameters' gradients, fp64, M."""
        found_M = torch.zeros(len(self.readers), dtype=torch.float64)
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.double()
            for number, reader in enumerate(self.readers):
                found_M[number] += (gradient * reader.get(name).to(gradient.device).double()).sum().cpu()
            parameter.grad = None
        return found_M

    def loss(self, rows: Rows, max_rows: int, with_gradient: bool = False) -> float:
        """Nats per response token of the first ``max_rows`` rows. ``with_gradient``: also add gradients to the parameters."""
        check_rows_fit(self.model, [rows])
        longest = max(rows.lengths())
        packed = PackedRows(rows, longest, packing=family_of(self.model.config).packs)
        chosen = [kept for sequence in packed.sequences if (kept := [index for index in sequence if index < max_rows])]
        size = max(1, TOKENS_PER_BATCH // longest)
        batches = [packed.collate(chosen[start:start + size]) for start in range(0, len(chosen), size)]
        tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
        self.model.eval().requires_grad_(with_gradient)
        total = 0.0
        for batch in batches:
            placed = {name: item.to(self.model.device) for name, item in batch.items()}
            with torch.set_grad_enabled(with_gradient):
                loss = response_loss(self.model, placed) / tokens
            if with_gradient:
                loss.backward()
            total += float(loss.detach())
        self.model.requires_grad_(False)
        if not math.isfinite(total):
            raise CheckpointError(
                "A member of the ensemble, or a mean of them, has a loss that is not a number: one of the models is damaged.")
        return total


def choose_greedily(members: Members, rows: Rows, max_rows: int, journal: Path) -> Chosen:
    """The greedy soup."""
    known = _Journal(journal)

    def measure(counts: list[int]) -> float:
        def work() -> dict[str, Any]:
            members.apply(torch.tensor(counts, dtype=torch.float64) / sum(counts))
            return {"nll": members.loss(rows, max_rows)}
        nll = float(known.get({"counts": counts}, work)["nll"])
        shown = [f"{count} x {name}" for count, name in zip(counts, members.names, strict=True) if count]
        logger.info("ensemble: loss %.4f of %s", nll, ", ".join(shown))
        return nll

    places = range(len(members.names))
    alone = [measure([int(place == number) for place in places]) for number in places]
    best, *others = sorted(places, key=lambda number: (alone[number], number))
    counts, nll = [int(place == best) for place in places], alone[best]
    for number in others:
        more = [count + int(place == number) for place, count in enumerate(counts)]
        if (found := measure(more)) < nll:
            counts, nll = more, found
    weights = {name: count / sum(counts) for name, count in zip(members.names, counts, strict=True)}
    return Chosen(weights, nll, dict(zip(members.names, alone, strict=True)))


def learn_shares(
    members: Members, rows: Rows, max_rows: int, steps: int, learning_rate: float, journal: Path,
) -> Chosen:
    """beta from the projected gradient: the best of the start and ``steps`` steps. Every step sees all of the same rows."""
    known = _Journal(journal)
    b_M = torch.zeros(len(members.names), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([b_M], lr=learning_rate)
    visited: list[tuple[float, list[float]]] = []
    for step in range(steps + 1):
        with torch.enable_grad():
            beta_M = torch.softmax(b_M, 0)
        beta = beta_M.detach().clone()

        def work(beta: torch.Tensor = beta) -> dict[str, Any]:
            members.apply(beta)
            nll = members.loss(rows, max_rows, with_gradient=True)
            return {"nll": nll, "gradient": members.gradient().tolist()}

        found = known.get({"beta": beta.tolist()}, work)
        visited.append((float(found["nll"]), beta.tolist()))
        logger.info(describe_progress("ensemble", step, steps, f"loss {found['nll']:.4f}"))
        optimizer.zero_grad()
        beta_M.backward(torch.tensor(found["gradient"], dtype=torch.float64))
        optimizer.step()
    nll, best = min(visited, key=lambda item: item[0])
    total = sum(best)
    weights = {name: share / total for name, share in zip(members.names, best, strict=True)}
    return Chosen(weights, nll, {"equal shares": visited[0][0]})


class _Journal:
    """The measurements in their order. They are reused as long as the same ones are requested again."""

    def __init__(self, path: Path) -> None:
        self.path, self._rows, self._next = path, read_appended(path), 0

    def get(self, asked: dict[str, Any], work: Any) -> dict[str, Any]:
        """The earlier measurement for ``asked``, or the one that ``work`` makes now."""
        if self._next < len(self._rows) and self._rows[self._next]["asked"] == asked:
            found: dict[str, Any] = self._rows[self._next]["found"]
        else:
            if self._next < len(self._rows):  # a damaged journal: the rest is measured again
                self._rows = self._rows[:self._next]
                self.path.unlink()
                append(self.path, *self._rows)
            found = work()
            self._rows.append({"asked": asked, "found": found})
            append(self.path, self._rows[-1])
        self._next += 1
        return found
