"""Checking whether a fine-tuned model may be released, by gates that it has to pass (in `methods.gates`)."""

from luthier.examining.check.run import Checked, check
from luthier.examining.check.verdict import Verdict

__all__ = ["Checked", "Verdict", "check"]
