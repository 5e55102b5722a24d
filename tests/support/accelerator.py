"""An accelerator for tests on machines without one, called `desk`: every tensor of a pass is on it, or an error is.

`accelerator.cpp` says how it computes. A process that calls `begin` has it from then on, as one with a GPU has that.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import types
from pathlib import Path

import torch

from luthier.core.numerics import wide

NAME, SOURCE = "desk", Path(__file__).with_suffix(".cpp")


def compiler() -> str | None:
    """Returns the C++ compiler, if there is one."""
    return shutil.which("g++")


def begin() -> None:
    """Gives this process the accelerator."""
    library = ctypes.CDLL(str(_built()))
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend()
    library.begin()
    if os.environ.get("DESK_HAS_NO_FLOAT64"):
        wide.LACKING = (*wide.LACKING, NAME)
    os.environ["ACCELERATE_TORCH_DEVICE"] = NAME  # accelerate and the Trainer know some accelerators by name alone


def _built() -> Path:
    """The library, compiled once for this source and torch."""
    told = f"{SOURCE.read_text()} {torch.__version__} {torch.__file__}"
    made = Path(tempfile.gettempdir()) / f"luthier-desk-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    if made.is_file():
        return made
    home = Path(torch.__file__).parent
    own = made.with_suffix(f".{os.getpid()}")
    words = [compiler() or "g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-w", str(SOURCE), "-o", str(own)]
    words += [f"-I{home / 'include'}", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    words += [f"-L{home / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
    subprocess.run(words, check=True, capture_output=True, text=True)
    own.replace(made)
    return made


def _module() -> types.ModuleType:
    """What `torch.desk` is to have."""
    made = types.ModuleType(f"torch.{NAME}")
    own = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda index: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "_lazy_init": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=0: torch.get_rng_state(),
        "set_rng_state": lambda state, device=0: torch.set_rng_state(state),
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        "is_bf16_supported": lambda including_emulation=True: True,
    }
    for name, value in own.items():
        setattr(made, name, value)
    return made
