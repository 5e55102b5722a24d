"""Pictures in messages: among rows of other adapters, answered as `generate` answers, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import luthier as lt
from luthier import data, models
from luthier.engine.answers import answers
from luthier.engine.engine import Engine
from luthier.engine.settings import Sampling
from support.seeing import picture, save_llava

openai = pytest.importorskip("openai")
from support.served import serving  # noqa: E402


def shown(index: int) -> dict:
    kept = io.BytesIO()
    picture(index).save(kept, format="PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(kept.getvalue()).decode()},
    }


def turn(*parts) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    work = tmp_path_factory.mktemp("pictures")
    folder = save_llava(work / "model")
    loaded = models.load(str(folder))
    lt.attach(loaded.model, lt.LoRA(rank=2), where="all-linear")
    for parameter in lt.trainable(loaded.model).values():
        parameter.data += 0.05
    lt.save(loaded.model, work / "adapter")
    lt.detach(loaded.model)
    engine = Engine(loaded.model, loaded.processor, adapters={"one": work / "adapter"})
    engine.start()
    log = work / "log.jsonl"
    with serving(engine, tokenizer=loaded.processor, trained={"one": work / "adapter"}, log=log) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0), folder, work, log
    engine.close()


ASKED = [turn(shown(0), "which?"), turn("compare ", shown(1), shown(2)), turn("no picture")]


def test_answers_are_those_of_generate_in_a_crowd(served):
    client, folder, work, _ = served
    wanted = {}
    for name in ("base", "one"):
        loaded = models.load(str(folder))
        if name == "one":
            lt.load(loaded.model, work / "adapter")
        rows = [data.Example(row=1, messages=[{"role": "user", "content": text}, {"role": "assistant", "content": "a"}],
                             context=1, images=tuple(images)) for text, images in map(plain, ASKED)]  # fmt: skip
        prompts = [data.prompt_ids(row, loaded.processor) for row in rows]
        wanted[name] = answers(loaded.model, loaded.processor, prompts, Sampling(5), 1)
    calls = [(name, place) for name in wanted for place in range(3)] * 3

    def ask(call):
        name, place = call
        said = client.chat.completions.create(model=name, messages=ASKED[place], temperature=0, max_tokens=5)
        return said.choices[0].message.content

    with ThreadPoolExecutor(9) as pool:
        assert list(pool.map(ask, calls)) == [wanted[name][place] for name, place in calls]


def plain(turns):
    from luthier.data.pictures import MARK

    parts = turns[0]["content"]
    text = "".join(part.get("text", MARK) for part in parts)
    return text, [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def test_several_answers_and_a_stream_to_one_picture(served):
    client, *_ = served
    several = client.chat.completions.create(model="one", messages=ASKED[0], temperature=0, max_tokens=4, n=3)
    assert len({choice.message.content for choice in several.choices}) == 1
    assert several.usage.prompt_tokens == 25 + 4  # tokens of the text, and of the picture
    stream = client.chat.completions.create(model="one", messages=ASKED[0], temperature=0, max_tokens=4, stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert said == several.choices[0].message.content


def test_responses_take_pictures_too(served):
    client, *_ = served
    url = shown(0)["image_url"]["url"]
    parts = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "which?"}]
    said = client.responses.create(model="one", input=[{"role": "user", "content": parts}], temperature=0,
                                   max_output_tokens=16)  # fmt: skip
    chat = client.chat.completions.create(model="one", messages=ASKED[0], temperature=0, max_tokens=16)
    assert said.output_text == chat.choices[0].message.content


def test_the_log_can_be_trained_on(served, tmp_path):
    client, _, _, log = served
    client.chat.completions.create(model="base", messages=ASKED[0], temperature=0, max_tokens=6)
    lines = [line for line in log.read_text().splitlines() if '"image"' in line and '"finish": "length"' in line]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": json.loads(lines[-1])["messages"]}) + "\n")
    assert len(data.load(file).rows[0].images) == 1


REFUSED = {
    "nothing is fetched": {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
    "nothing is fetched here": {"type": "image_url", "image_url": {"url": "/etc/hostname"}},
    "does not support 'detail'": {
        "type": "image_url", "image_url": {"url": shown(0)["image_url"]["url"], "detail": "low"}
    },
    "unreadable image": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    "is not base64": {"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}},
    "content of type 'input_audio'": {"type": "input_audio", "input_audio": {}},
    "holds its text alone": {"type": "text"},
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_refused(served, why):
    client, *_ = served
    with pytest.raises(openai.BadRequestError, match=why):
        client.chat.completions.create(model="base", messages=turn(REFUSED[why], "which?"), max_tokens=2)


def test_only_users_show_pictures(served):
    client, *_ = served
    turns = [{"role": "system", "content": [shown(0)]}, {"role": "user", "content": "which?"}]
    with pytest.raises(openai.BadRequestError, match="a system turn shows no pictures"):
        client.chat.completions.create(model="base", messages=turns, max_tokens=2)


def test_a_model_of_text_alone_refuses_them(tmp_path):
    from support.cli_tools import save_llama

    loaded = models.load(str(save_llama(tmp_path / "llama")))
    engine = Engine(loaded.model, loaded.processor)
    engine.start()
    with serving(engine, tokenizer=loaded.processor) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="this model reads none"):
            client.chat.completions.create(model="base", messages=ASKED[0], max_tokens=2)
    engine.close()
