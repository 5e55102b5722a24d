"""kohya's own LoRA network, from a checkout of sd-scripts, without the rest of what that imports."""

import sys
import types
from pathlib import Path
from typing import Any


def lora_module(scripts: Path) -> Any:
    """networks/lora.py; two names that it imports are stood in for."""
    utils, original = types.ModuleType("library.utils"), types.ModuleType("library.sdxl_original_unet")
    utils.setup_logging = lambda *_, **__: None  # type: ignore[attr-defined]
    original.SdxlUNet2DConditionModel = type("SdxlUNet2DConditionModel", (), {})  # type: ignore[attr-defined]
    sys.modules |= {"library": types.ModuleType("library"), "library.utils": utils}
    sys.modules["library.sdxl_original_unet"] = original
    sys.path.insert(0, str(scripts / "networks"))
    try:
        import lora  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    return lora
