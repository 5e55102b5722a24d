"""Monitoring what a served model is asked and answers, against the data that it was trained on."""

from luthier.examining.monitor.run import Monitored, monitor

__all__ = ["Monitored", "monitor"]
