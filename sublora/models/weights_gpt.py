"""A GPT all of whose weights are a vector theta.

Shape legend: D weights.
"""

import dataclasses

from torch import Tensor

from sublora.models.lora import cut
from sublora.models.lora_gpt import AdaptedGPT, GPTNetwork


@dataclasses.dataclass(frozen=True, eq=False)
class WeightsGPT(GPTNetwork):
    """A GPT for every theta of its weights; a `Network`.

    The weights of `gpt` itself are in no model; `base_sha256` is that of the weights that training starts from.
    """

    def at(self, theta_D: Tensor) -> AdaptedGPT:
        return AdaptedGPT(self.gpt.with_weights(cut(self.space, theta_D.to(self.gpt.dtype))), None)
