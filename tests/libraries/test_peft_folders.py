"""A law over peft's folders: each method and setting is read with peft's own outputs, or refused with a true reason."""

from __future__ import annotations

import warnings

import pytest
import torch

import luthier as lt

peft = pytest.importorskip("peft")

from luthier.interop.formats._peft_config import ALSO_MERGED  # noqa: E402
from support.peft_cases import LORA, Case, mixed  # noqa: E402
from support.peft_methods import METHODS, OTHERS  # noqa: E402


def output(model, case: Case) -> torch.Tensor:
    with torch.no_grad():
        return model(**case.inputs()).logits


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-5 * max(1.0, float(other.abs().max())))


def loaded(case: Case, folder):
    return peft.PeftModel.from_pretrained(case.base(), folder).eval()


def check(case: Case, folder, target, reading: bool | None) -> None:
    base = case.base()
    try:
        ours = lt.import_adapter(folder, target, base=base)
    except lt.LuthierError as error:
        assert not reading, error
        _check_reason(case, folder, str(error))
        return
    assert reading is not False, "this case is read now: say so"
    loads = output(loaded(case, folder), case)
    wanted = output(case.fitted(), case) if case.live else loads
    assert not (case.live and close(loads, wanted)), "peft loads this now: say so"
    assert not torch.allclose(output(base, case), wanted, atol=1e-3), "the case moves nothing"
    assert close(output(lt.load(case.base(), ours), case), wanted)


def _check_reason(case: Case, folder, message: str) -> None:
    """One line; and the advice to merge is given where peft merges to the same outputs, and only there."""
    assert "\n" not in message and "other base" not in message and "damaged" not in message
    try:
        theirs = loaded(case, folder)
        wanted = output(theirs, case)
        merges = close(output(theirs.merge_and_unload(), case), wanted)
    except Exception:  # what peft raises where it cannot run without more inputs, or merge
        merges = False
    if "Merge it with the versions" not in message:
        assert (ALSO_MERGED in message) == merges, message


@pytest.mark.parametrize("name", [*LORA, *OTHERS])
def test_settings(name, tmp_path):
    case = {**LORA, **OTHERS}[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.fitted().save_pretrained(tmp_path / "peft", **case.saved)
        check(case, tmp_path / "peft", tmp_path / "ours", case.reading)


@pytest.mark.parametrize("seed", range(40))
def test_settings_that_are_drawn_together(seed, tmp_path):
    """Most mixtures are read; those that peft itself refuses, or does not load as it saved them, say nothing."""
    case = mixed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fitted = case.fitted()
            fitted.save_pretrained(tmp_path / "peft")
            known = output(loaded(case, tmp_path / "peft"), case)
        except Exception as error:  # peft raises whatever it meets
            pytest.skip(f"peft does not take these settings: {str(error)[:100]}")
        if not close(known, output(fitted, case)):
            pytest.skip("peft does not load what it saved")
        check(case, tmp_path / "peft", tmp_path / "ours", None)


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_the_registry(name, tmp_path):
    """A method that peft adds is met here by itself, and is read or refused."""
    case = METHODS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.fitted().save_pretrained(tmp_path / "peft")
        check(case, tmp_path / "peft", tmp_path / "ours", None)


READ = ("LORA", "ADALORA", "IA3", "LN_TUNING", "TRAINABLE_TOKENS", "PREFIX_TUNING")


def test_what_is_read_is_what_the_law_read():
    from luthier.interop.formats._peft_methods import READERS

    assert tuple(READERS) == READ and set(READ) <= set(METHODS)
