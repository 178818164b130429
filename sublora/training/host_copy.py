"""Numbers on their way from a GPU to the host, without either waiting for the other."""

import numpy as np
import torch
from torch import Tensor


class HostCopy:
    """A tensor's values on the host. The copy is queued at once, and `numpy` waits for it alone, not for later work."""

    def __init__(self, tensor: Tensor) -> None:
        self._values, self._copied = tensor.detach(), None
        if tensor.device.type == "cuda":
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values = pinned.copy_(self._values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def numpy(self) -> np.ndarray:
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.numpy()
