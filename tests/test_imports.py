"""Importing Luthier changes nothing of other libraries: that happens when something is attached, loaded or run."""

from __future__ import annotations

import json
import subprocess
import sys

from support import fresh

CODE = """
import importlib, json, logging, os, pkgutil, sys
import torch, transformers
from transformers import AutoConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NAMES = ("", "transformers", "torchao", "bitsandbytes", "torch.utils._pytree", "accelerate", "datasets", "peft")

def seen():
    loggers = [logging.getLogger(name) for name in NAMES]
    return {
        "loggers": [(l.name, l.level, l.propagate, l.disabled, len(l.filters)) for l in loggers],
        "verbosity": transformers.utils.logging.get_verbosity(),
        "bars": transformers.utils.logging.is_progress_bar_enabled(),
        "attentions": sorted(ALL_ATTENTION_FUNCTIONS.valid_keys()),
        "masks": sorted(ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()),
        "models": sorted(CONFIG_MAPPING._extra_content),
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "hooks": [str(sys.excepthook), str(sys.displayhook)],
    }

for name in ("accelerate", "datasets", "peft"):  # they set levels of their own
    importlib.import_module(name)
before = seen()
import luthier

count = 0
for module in pkgutil.walk_packages(luthier.__path__, "luthier."):
    if module.name == "luthier.__main__":
        continue
    try:
        importlib.import_module(module.name)
        count += 1
    except ImportError as error:  # what it stands on is not installed
        assert error.name and not error.name.startswith("luthier"), (module.name, error)
    except luthier.LuthierError as error:  # the same, told with what to install
        assert str(error).startswith("needs "), (module.name, error)
after = seen()
changed = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
print(json.dumps({"count": count, "changed": changed}))
"""


def test_importing_every_module_changes_nothing_of_other_libraries():
    done = fresh.run("-c", CODE)  # a process that has these libraries, and nothing of Luthier
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["count"] > 300 and told["changed"] == {}


def test_loading_a_name_says_nothing_of_this_machine():
    """transformers imports torchao and bitsandbytes where they are installed, and each reports missing kernels."""
    code = "import luthier as lt, logging\nlt.attach\nprint(logging.getLogger('torchao').level)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
