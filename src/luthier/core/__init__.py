"""What every method stands on. Nothing here knows a method by name."""

import logging

# Where they are installed, transformers imports these, and each then reports the kernels that this machine lacks.
for _name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
