"""`luthier --print-completion`: the script is one of the shell, and completes commands and flags."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from luthier.cli.parse import SHELLS, commands


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The script of each shell, in a file."""
    from contextlib import redirect_stdout

    from luthier.cli import main

    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        with open(folder / shell, "w", encoding="utf-8") as file, redirect_stdout(file):
            assert main(["--print-completion", shell]) == 0
    return folder


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_takes_its_script(scripts, shell):
    text = (scripts / shell).read_text(encoding="utf-8")
    assert all(name in text for name in commands()) and "--method" in text
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", str(scripts / shell)], capture_output=True, check=False).returncode == 0


def test_bash_completes(scripts):
    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        script = f"source {scripts / 'bash'}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
        script += 'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}; '
        script += f"$(complete -p luthier | sed 's/.*-F \\([^ ]*\\).*/\\1/') luthier '{words[-1]}' '{words[-2]}'; "
        script += 'printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("luthier", "stu") == ["studio"]
    assert "--resume" in completed("luthier", "train", "--res")
    assert "--columns" in completed("luthier", "predict", "--col")


def test_other_words_are_refused(call):
    for words in ([], ["tcsh"], ["bash", "zsh"]):
        done = call("--print-completion", *words)
        assert done.code == 2 and "bash, zsh, fish" in done.err
