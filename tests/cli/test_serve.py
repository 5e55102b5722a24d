"""`luthier serve` from the command line: what it refuses before it loads anything, and a start to the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from luthier.cli.commands.serve import Serve, model_name, need_extra
from luthier.core.errors import LuthierError


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--adapter", "folder"], "expected name=folder"),
        (["--adapter", "a b=folder"], "a name has letters"),
        (["--adapter", "a=/no/such/folder"], "no adapter folder /no/such/folder"),
        (["--rows", "0"], "--rows is 0"),
        (["--drain", "-1"], "--drain is -1"),
        (["--port", "70000"], "port is 70000"),
        (["--api-key", " "], "the API key"),
        (["--adapters-folder", "/no/such/folder"], "there is no folder /no/such/folder"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(call, words, told):
    done = call("serve", "no-such-model", *words)
    assert done.code == 2 and told in done.err


def test_a_port_in_use_is_told_before_anything_is_loaded(call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = call("serve", "no-such-model", "--port", taken.getsockname()[1])
    assert done.code == 2 and "in use" in done.err


def test_names_of_adapters_are_their_own(call, adapter, tmp_path):
    assert "two adapters are named" in call("serve", "m", "--adapter", f"a={adapter}", "--adapter", f"a={adapter}").err
    base = tmp_path / "base"
    base.mkdir()
    assert "is what the base is called" in call("serve", base, "--adapter", f"base={adapter}").err


def test_the_key_comes_from_the_flag_or_the_environment(monkeypatch):
    monkeypatch.delenv("LUTHIER_API_KEY", raising=False)
    assert Serve("m").key() is None
    monkeypatch.setenv("LUTHIER_API_KEY", "there")
    assert (Serve("m").key(), Serve("m", api_key="here").key()) == ("there", "here")
    monkeypatch.setenv("LUTHIER_API_KEY", "")
    with pytest.raises(LuthierError, match="empty"):
        Serve("m").key()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(LuthierError, match=r"pip install 'luthier\[serve\]'"):
        need_extra()


def test_what_the_base_is_called(tmp_path):
    (tmp_path / "mine").mkdir()
    assert model_name(str(tmp_path / "mine")) == "mine" and model_name("org/name") == "org/name"


def test_from_start_to_end(llama, adapter):
    words = ["serve", str(llama), "--adapter", f"mine={adapter}", "--port", "0", "--host", "0.0.0.0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith("llama and 1 adapter: chat at http://0.0.0.0:"), line
    address = f"http://127.0.0.1:{line.split('http://0.0.0.0:')[1].split(',')[0]}"
    with urllib.request.urlopen(f"{address}/v1/models") as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == ["llama", "mine"]
    for name in ("llama", "mine"):
        body = {"model": name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}
        asked = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode())
        asked.add_header("content-type", "application/json")
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] <= 4
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert err.startswith("warning: everyone who reaches 0.0.0.0 may use this server")
