"""The cluster_rows stage: group the training rows into clusters of similar prompts, one for each branch to be tuned (c-BTM,
arXiv 2303.14177). Writes clusters.json, see store/results/cluster_rows.py.

A prompt's embedding is the mean of the model's last hidden states over its tokens. K-means (scikit-learn: k-means++, the best
of ten starts) divides the embeddings. Clusters may differ in size; none is empty.
Shape suffixes: N rows, B rows of a batch, S tokens, D hidden size.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from xft_core.data.packing import PackedRows
from xft_core.data.rows import Rows, load_rows
from xft_core.errors import DataError
from xft_core.files.locate import find_model
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs import ClusterRowsStage
from xft_core.store.results.cluster_rows import ClusterRowsMetrics, ClustersFile
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import TOKENS_PER_BATCH, check_rows_fit
from xft_core.training.response_loss import model_inputs

logger = logging.getLogger(__name__)

STARTS = 10  # of k-means


def run(config: ClusterRowsStage, workspace: Workspace) -> ClusterRowsMetrics:
    """Run the stage. Raises DataError if there are fewer distinct prompts than clusters, or rows that do not fit the model."""
    rows = load_rows(config.data, "train")
    model = load_model(find_model(config.model), DTYPES[config.precision])
    check_rows_fit(model, [rows])
    embedding_ND = prompt_embeddings(model.to(device_for_work()), rows)  # type: ignore[arg-type]
    labels, explained = clustered(embedding_ND, config.clusters, config.seed, config.data)
    sizes = [labels.count(cluster) for cluster in range(config.clusters)]
    ClustersFile(sizes=sizes, train=labels).write(workspace.output)
    logger.info("cluster_rows: %d rows in clusters of %s", len(rows), ", ".join(map(str, sizes)))
    return ClusterRowsMetrics(
        rows=len(rows), smallest_cluster=min(sizes), largest_cluster=max(sizes), explained=explained)


@torch.no_grad()
def prompt_embeddings(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    """Mean of the last hidden states over each row's prompt (fp64, N,D), or over the entire row if it has no prompt."""
    model.eval()
    lengths = rows.lengths()
    order = sorted(range(len(rows)), key=lambda index: (-lengths[index], index))
    packed = PackedRows(rows, max(lengths), packing=False)
    found: dict[int, torch.Tensor] = {}
    while order:
        number = max(1, TOKENS_PER_BATCH // lengths[order[0]])
        chosen, order = order[:number], order[number:]
        batch = {name: item.to(model.device) for name, item in packed.collate([[index] for index in chosen]).items()}
        hidden_BSD = model.base_model(**model_inputs(model, batch)).last_hidden_state
        for hidden_SD, index in zip(hidden_BSD, chosen, strict=True):
            prompt = rows[index][1] or lengths[index]
            found[index] = hidden_SD[:prompt].double().mean(0).cpu()
    return torch.stack([found[index] for index in range(len(rows))])


def clustered(embedding_ND: torch.Tensor, clusters: int, seed: int, where: Path) -> tuple[list[int], float]:
    """Return each embedding's cluster, numbered by first appearance, and the share of variance between clusters."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    points_ND = embedding_ND.numpy()
    different = len(np.unique(points_ND, axis=0))
    if different < clusters:
        raise DataError(
            f"The {len(points_ND)} training rows of {str(where)!r} have {different} distinct prompts, too few for {clusters} "
            "clusters: lower upcycle.num_experts, take more rows, or set upcycle.branches_by to random.")
    with threadpool_limits(1):  # several threads would add in varying order and change the last bits
        label_N = KMeans(clusters, n_init=STARTS, random_state=seed).fit(points_ND).labels_
    numbers: dict[int, int] = {}
    labels = [numbers.setdefault(int(label), len(numbers)) for label in label_N]
    assert len(numbers) == clusters, "k-means fills every cluster if there are enough distinct points"
    total = float(((points_ND - points_ND.mean(0)) ** 2).sum())
    groups = (points_ND[label_N == label] for label in numbers)
    within = sum(float(((group - group.mean(0)) ** 2).sum()) for group in groups)
    return labels, 1 - within / total if total else 0.0
