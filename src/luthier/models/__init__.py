"""Models: by a folder, a hub id, a .gguf file or a name of the catalogue.

Heavy libraries load inside the functions, so importing this costs nothing.
"""

from __future__ import annotations

from luthier.models.base_hash import base_hash
from luthier.models.catalogue import Entry, File, catalogue
from luthier.models.chat import Chat, with_chat
from luthier.models.config import config_of, meta_model, processor_of
from luthier.models.fetch import fetch, is_cached
from luthier.models.fitted import WRITTEN, fitted_task, refuse_unwritten, task_of
from luthier.models.labels import LABELLED, named
from luthier.models.licence import licence_of
from luthier.models.load import TASKS, Loaded, class_of, load, processor_at, task_of_class, task_of_model
from luthier.models.max_positions import positions
from luthier.models.resolve import resolve
from luthier.models.speech import SPEECH
from luthier.models.trust import config_at, explained, first_line, trusted, trusting

model = load
"""`luthier.model`: its public name, as `luthier.load` reads adapters."""

__all__ = [
    "LABELLED",
    "SPEECH",
    "TASKS",
    "WRITTEN",
    "Chat",
    "Entry",
    "File",
    "Loaded",
    "base_hash",
    "catalogue",
    "class_of",
    "config_at",
    "config_of",
    "explained",
    "fetch",
    "first_line",
    "fitted_task",
    "is_cached",
    "licence_of",
    "load",
    "meta_model",
    "model",
    "named",
    "positions",
    "processor_at",
    "processor_of",
    "refuse_unwritten",
    "resolve",
    "task_of",
    "task_of_class",
    "task_of_model",
    "trusted",
    "trusting",
    "with_chat",
]
