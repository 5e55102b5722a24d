"""What every method stands on. Nothing here knows a method by name."""

import logging

# Where torchao is installed, importing transformers makes it report each CUDA kernel that a CPU does not have.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
