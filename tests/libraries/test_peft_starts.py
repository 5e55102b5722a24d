"""Settings of peft's LoRA that are not read: each says why, and what to do, which works."""

from __future__ import annotations

import json

import pytest
import torch

import luthier as lt

peft = pytest.importorskip("peft")

from support.peft_cases import Case, lora  # noqa: E402


def output(model, case: Case) -> torch.Tensor:
    with torch.no_grad():
        return model(**case.inputs()).logits


def configured(folder, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


STARTS = {
    "corda": ({"init_lora_weights": "corda"}, r"does not load it without what was measured then\. Saved with path"),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, r"where it answers otherwise\. Saved with path_initial"),
    "loftq": ({"init_lora_weights": "loftq"}, r"quantises the base's weights .* Merge it with peft .*model\.$"),
    "pissa_niter": ({"init_lora_weights": "pissa_niter_4"}, r"another start each time\. Saved with path_initial"),
    "pissa with ranks of its own and rsLoRA": (
        {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"k_proj": 2}},
        r"Merge it with peft \(merge_and_unload\) and use the model\.$",
    ),
    "a start of tomorrow": ({"init_lora_weights": "of-tomorrow"}, "take it out of adapter_config.json"),
    "a setting of tomorrow": ({"use_tomorrow": True}, "take it out of adapter_config.json"),
    "blocks without a number": ({"use_bdlora": {"nblocks": "two"}}, "expected a table with a number of blocks"),
}


@pytest.mark.parametrize("name", STARTS)
def test_settings_that_are_not_read_say_what_to_do(name, tmp_path):
    case, (changes, message) = Case(lora("q_proj")), STARTS[name]
    case.fitted().save_pretrained(tmp_path)
    configured(tmp_path, **changes)
    with pytest.raises(lt.LuthierError, match=message):
        lt.import_adapter(tmp_path, tmp_path / "ours", base=case.base())


@pytest.mark.filterwarnings("ignore")
def test_what_lora_ga_took_off_is_not_in_the_folder(tmp_path):
    """So that peft answers otherwise with what it saved, and as before with what it converted, which is read."""
    case = Case(lora("q_proj", init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()))
    model, config = case.base(), case.make()

    def step():
        model(**case.inputs(), labels=case.inputs()["input_ids"]).loss.backward()

    peft.tuners.lora.preprocess_loraga(model, config, step)
    theirs = peft.get_peft_model(model, config).eval()
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "lora_ga"
    for key, parameter in theirs.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) if "lora_" in key else 0
    wanted = output(theirs, case)
    theirs.save_pretrained(tmp_path / "plain")
    loaded = peft.PeftModel.from_pretrained(case.base(), tmp_path / "plain").eval()
    assert (output(loaded, case) - wanted).abs().max() > 1e-2
    theirs.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours = lt.load(case.base(), lt.import_adapter(tmp_path / "converted", tmp_path / "ours", base=case.base()))
    assert (output(ours, case) - wanted).abs().max() < 1e-4
