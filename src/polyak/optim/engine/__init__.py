"""The engine: runs chains of rules as ``torch.optim.Optimizer``."""
