"""ONNX: the whole model as a graph for onnxruntime, in the browser too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from luthier.core.contracts.format import Format, Outgoing
from luthier.core.guard import guarded


@dataclass(frozen=True)
class ONNX(Format):
    """W + ΔW → onnx/model.onnx, config.json, generation_config.json, tokenizer

    The layout and the names that transformers.js and optimum's onnxruntime classes look for. A language model takes
    input_ids, attention_mask, position_ids and past_key_values.0.key, … and gives logits and present.0.key, …, one
    graph for prompts and for what comes behind them; an encoder takes what its tokenizer gives, and gives logits or
    last_hidden_state. transformers' own exporter makes the graph. It is then run by onnxruntime on padded prompts of
    other lengths and token by token, and compared with the model: one that answers otherwise is refused.

    Written for language models whose cache holds all keys and values (no sliding windows or states) and for encoders
    of text.
    """

    paper = "ONNX (onnx.ai), opset 18; transformers 5 (Hugging Face), `exporters`; transformers.js 3"
    loss: ClassVar[str] = "rounded"

    dtype: Literal["f32", "q4"] = "f32"
    """Dtype of the matrices. q4 has 4 bits and a scale for 32 numbers (MatMulNBits), and is named model_q4.onnx, as
    transformers.js looks for it with dtype: "q4"."""

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._merged import check_whole
        from luthier.interop.formats._onnx import check

        check_whole(model, processor, "a model in ONNX")
        check(model)

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from luthier.interop.formats._merged import save_merged
        from luthier.models.quiet import quiet

        model: Any = outgoing.model
        save_merged(model, outgoing.processor, folder, outgoing.name)
        with quiet():
            kind = vars(type(model)).get("_luthier_base", type(model))
            merged = kind.from_pretrained(folder, dtype="float32", use_safetensors=True, trust_remote_code=False).eval()
        for file in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
            file.unlink()
        with guarded(f"{type(merged).__name__} cannot be written in ONNX"):
            lost = self._write_graph(merged, outgoing.processor, folder)
        return {"the output": lost} if lost > 1e-5 else {}

    def _write_graph(self, merged: Any, processor: Any, folder: Path) -> float:
        """Writes the graph; returns its largest difference from the model."""
        from luthier.interop.formats._onnx import graph_of, quantised, save, tell_of_weights_beside
        from luthier.interop.formats._onnx_run import difference

        (folder / "onnx").mkdir()
        file = save(graph_of(merged, processor), folder / "onnx" / "model.onnx")
        lost = difference(merged, file, processor, exact=True)
        if self.dtype == "q4":
            file = quantised(file)
            lost = difference(merged, file, processor, exact=False)
        tell_of_weights_beside(file, folder / "config.json")
        return lost
