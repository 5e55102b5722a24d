"""Parsing the command line: flags are fields of dataclasses, and their help is the fields' docstrings."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from luthier.cli.signature import Flags, Given, Places, filled, nothing, signature_of
from luthier.cli.stopped import NOTHING
from luthier.core.contracts.plugins import File, files_in, installed_files
from luthier.core.device import on_device
from luthier.core.errors import LuthierError
from luthier.core.paths import path_of
from luthier.core.version import __version__


@dataclass(frozen=True)
class Command:
    """The base class of commands: a dataclass whose fields are arguments, and keyword-only fields flags."""

    group: ClassVar[str] = "Fit"
    """Under which heading it is listed: Data, Fit, Use, Ship or Look."""
    examples: ClassVar[tuple[str, ...]] = ()
    """Whole command lines."""
    data_family: ClassVar[str] = ""
    """Of a command of the group Data, whose knowledge the rows hold that it makes or chooses
    (`core.families.DATA_FAMILIES`)."""

    @classmethod
    def name(cls) -> str:
        """What is typed after `luthier`."""
        return cls.__module__.rpartition(".")[2].rstrip("_")

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        """Further flags, chosen by what the user has typed."""
        return []

    def within(self) -> AbstractContextManager[object]:
        """Returns what the command runs within."""
        return nullcontext()

    def run(self, given: Given) -> None:
        """Does it. `given` holds the flags set of each dataclass of `settings`."""
        raise NotImplementedError

    def stopped(self, given: Given) -> str:
        """What is told when it was interrupted."""
        return NOTHING


@dataclass(frozen=True)
class Telling(Command):
    """Base of the commands that do something and tell in lines, or as JSON, what came of it."""

    json: bool = dataclasses.field(default=False, kw_only=True)
    """Print what came of it as JSON; what is told on the way goes to stderr."""

    def run(self, given: Given) -> None:
        from luthier.cli.output import say_json

        with redirect_stdout(sys.stderr) if self.json else nullcontext():
            found = self.do(given)
        if self.json and found is not None:
            say_json(found)

    def do(self, given: Given) -> Any:
        """Does it, and returns what came of it; None where nothing did (in a process that is not the main one)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Reading(Command):
    """Base of the commands that read models, or what prepares their inputs, and compute nothing by them: all that they
    do with weights is done by the CPU, whose memory is the larger one."""

    trust_remote_code: bool = dataclasses.field(default=False, kw_only=True)
    """Run Python code that lies in the model's folder or repository, where its architecture or tokenizer needs it."""

    def within(self) -> AbstractContextManager[object]:
        from luthier.models import trusting

        made = ExitStack()
        made.enter_context(trusting(self.trust_remote_code))
        made.enter_context(on_device(self.place()))
        return made

    def place(self) -> str:
        """Returns where models are loaded."""
        return "cpu"


@dataclass(frozen=True)
class Loading(Reading):
    """Base of the commands that compute models."""

    device: str = dataclasses.field(default="auto", kw_only=True)
    """Where models are computed: auto (an accelerator if there is one), cpu, cuda, cuda:1, mps."""

    def place(self) -> str:
        return self.device


@dataclass(frozen=True)
class Signed(Command):
    """Base of the commands that load adapters, among other things or alone."""

    require_signature: Path | None = dataclasses.field(default=None, kw_only=True)
    """Public key that has signed every adapter that is loaded (`luthier sign`); others are refused."""

    def within(self) -> AbstractContextManager[object]:
        from luthier.interop.sign import requiring

        made = ExitStack()
        made.enter_context(super().within())
        made.enter_context(requiring(self.require_signature))
        return made


@dataclass(frozen=True)
class Fitted(Signed, Loading):
    """Base of the commands that compute models with their adapters."""


@dataclass(frozen=True)
class Rewriting(Signed, Reading):
    """Base of the commands that make files of models and adapters out of others, of which little is in memory."""

    def within(self) -> AbstractContextManager[object]:
        from luthier.core.mapped import low_memory

        made = ExitStack()
        made.enter_context(super().within())
        made.enter_context(low_memory(path_of(vars(self)["out"]).parent))  # each of them writes one folder
        return made


def commands(wanted: str | None = None) -> dict[str, type[Command]]:
    """Every command by name: that of each file of `luthier.cli.commands`, of `LUTHIER_PATH` and of installed packages.

    Packages are looked for unless the command `wanted` is there without them, for it takes a while. Raises
    `LuthierError` for a name that two files have. A command of somebody else that cannot be imported is left out, with
    a warning: it must not take the others along.
    """
    own = importlib.import_module("luthier.cli.commands")
    found = _by_name({}, (file for folder in own.__path__ for file in files_in(own.__name__, folder)))
    found = found if wanted in found else _by_name(found, installed_files("commands"))
    return {name: cls for name, (_, cls) in sorted(found.items())}


def _by_name(known: dict[str, tuple[File, type[Command]]], files: Iterable[File]) -> dict[str, Any]:
    found = dict(known)
    for file in files:
        for each in _commands_in(file):
            other, _ = found.setdefault(each.name(), (file, each))
            if other.path != file.path:
                raise LuthierError(f"two commands are called {each.name()}: {other.path} and {file.path}; rename one.")
    return found


def _commands_in(file: File) -> list[type[Command]]:
    try:
        module = importlib.import_module(file.module)
    except Exception as error:
        if file.path.is_relative_to(Path(__file__).parent):
            raise
        warnings.warn(f"the command in {file.path} is left out: {type(error).__name__}: {error}", stacklevel=2)
        return []
    own = (v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__)
    return [each for each in own if issubclass(each, Command)]


def option(tokens: Sequence[str], flag: str) -> str | None:
    """Returns the value of `--flag value` or `--flag=value` among tokens not parsed yet."""
    for token, following in itertools.zip_longest(tokens, tokens[1:]):
        if token == flag:
            return following
        if token.startswith(f"{flag}="):
            return token.partition("=")[2]
    return None


def parse(tokens: Sequence[str]) -> tuple[Command, Given] | None:
    """Returns the command to run, with the settings given; None when help or the version was asked for and printed.

    Raises `LuthierError` for an invalid command line, with near names.
    """
    import cyclopts

    known = commands(tokens[0] if tokens else None)
    if tokens[:1] == [COMPLETION]:
        _print_completion(known, tokens[1:])
        return None
    named = tokens[1:2] if tokens[:1] in (["--help"], ["-h"]) else tokens[:1]
    app, made = _application(known, named, tokens[1:])
    try:
        chosen, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise LuthierError(_reason(error, known, tokens)) from error
    if chosen not in made:
        chosen(*bound.args, **bound.kwargs)
        return None
    return filled(*made[chosen], bound.arguments)


def _application(
    known: Mapping[str, type[Command]], named: Collection[str], tokens: Sequence[str]
) -> tuple[Any, dict[Callable, tuple[type[Command], Places]]]:
    """The command line with all commands, of which those `named` have their flags (which follow from the tokens)."""
    import cyclopts

    app = cyclopts.App(
        name="luthier",
        help="Measure, fit, compare and ship adaptations of foundation models.",
        help_epilogue=_examples(OVERVIEW),
        help_format="plaintext",
        version=__version__,
    )
    made: dict[Callable, tuple[type[Command], Places]] = {}
    for name, cls in known.items():
        function, places = signature_of(cls, cls.settings(tokens)) if name in named else (nothing(), {})
        made[function] = cls, places
        app.command(
            function,
            name=name,
            help=_flowing(inspect.getdoc(cls) or ""),
            help_epilogue=_examples(cls.examples),
            group=cls.group,
        )
    return app, made


COMPLETION = "--print-completion"
SHELLS = ("bash", "zsh", "fish")


def _print_completion(known: Mapping[str, type[Command]], tokens: Sequence[str]) -> None:
    """Prints the script by which a shell completes commands and flags; those of methods are the defaults'."""
    if len(tokens) != 1 or tokens[0] not in SHELLS:
        raise LuthierError(f"{COMPLETION} takes the name of a shell: {', '.join(SHELLS)}.")
    app, _ = _application(known, known, ())
    sys.stdout.write(app.generate_completion(shell=tokens[0]))


OVERVIEW = (
    "luthier train smollm2-135m train.jsonl --method wegeft --rank 64 --out run",
    "luthier evaluate smollm2-135m test.jsonl --adapter run",
    "luthier merge smollm2-135m run merged",
    "luthier list forms",
    "luthier --print-completion bash",
)


def _flowing(doc: str) -> str:
    """Paragraphs without their line breaks: the terminal breaks them."""
    return "\n\n".join(" ".join(part.split()) for part in doc.split("\n\n"))


def _examples(lines: Sequence[str]) -> str:
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)]) if lines else ""


def _reason(error: Any, known: Mapping[str, type[Command]], tokens: Sequence[str]) -> str:
    """What cyclopts says, with a next step."""
    error.verbose = False
    text = str(error).strip()
    extra = getattr(error, "unused_tokens", None)
    if type(error).__name__ == "UnusedCliTokensError" and extra:
        text = f"unexpected argument {extra[0]!r}."
    command = f"{tokens[0]} " if tokens and tokens[0] in known else ""
    method = option(tokens, "--method") if command else None
    where = f"luthier {command}{f'--method {method} ' if method else ''}--help"
    text = text[:1].lower() + text[1:]
    return f"{text}{'' if text.endswith(('.', '?')) else '.'} See `{where}`."
