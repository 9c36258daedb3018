"""HierarchicalTopK: one dictionary for every K up to the largest, as the first k latents reconstruct
alone.

Balagansky et al. 2025, "Train one sparse autoencoder across multiple sparsity budgets to preserve
interpretability and accuracy" (EMNLP), on top of TopK: the loss is the mean of the reconstruction
losses of each row's k most active latents, over the config's levels of k. Shapes: B batch, D d_in, F
d_sae, K k.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from raysae.sae.config import HierarchicalTopKConfig, TopKConfig
from raysae.sae.topk import KSAE, TopKSAE, top_k


class HierarchicalTopKSAE(KSAE):
    """TopK SAE that can be read at any K up to its own; with the AuxK loss."""

    config: HierarchicalTopKConfig

    def activate(self, preactivations_BF: Tensor) -> Tensor:
        """Features ``[batch, d_sae]``: each row's k largest pre-activations after ReLU."""
        return top_k(preactivations_BF, self.config.k)

    def reconstruction_loss(self, x_BD: Tensor, features_BF: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the levels' losses, and the last level's error ``[batch, d_in]``."""
        values_BK, indices_BK = features_BF.topk(self.config.k, dim=-1, sorted=True)
        values_BK = values_BK.to(self.W_dec.dtype)
        loss, start, error_BD = x_BD.new_zeros(()), 0, x_BD - self.b_dec
        for end in self.config.ends:
            # only the rows of the decoder that are in use are read
            added_BD = embedding_bag(
                indices_BK[:, start:end].contiguous(), self.W_dec, mode="sum",
                per_sample_weights=values_BK[:, start:end].contiguous(),
            )  # fmt: skip
            error_BD = error_BD - added_BD
            loss = loss + error_BD.square().sum(dim=1).mean() / len(self.config.ends)
            start = end
        return loss, error_BD

    @torch.no_grad()
    def at_k(self, k: int) -> TopKSAE:
        """An ordinary TopK SAE of this one's weights, which are copied, that reads ``k`` latents a row.

        Raises ValueError when ``k`` is not from 1 to the config's.
        """
        if not 1 <= k <= self.config.k:
            raise ValueError(f"k is {k}; this SAE was trained for 1 to {self.config.k}")
        config = TopKConfig(
            d_sae=self.config.d_sae, k=k, aux_coefficient=self.config.aux_coefficient
        )
        plain = TopKSAE(config, self.d_in).to(self.W_dec)
        plain.load_state_dict(self.state_dict())
        plain.metadata = {**self.metadata, "hierarchical_topk": {"k": self.config.k}}
        return plain.train(self.training)
