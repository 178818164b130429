"""Any `torch.nn.Module` with d trained numbers: the wrapped module, its message and the price of that message."""
