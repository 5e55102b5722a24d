"""lm-evaluation-harness's `local-completions` and `local-chat-completions` against a server.

`client_lm_eval.py ADDRESS FOLDER` is run by `support.record_clients` with a Python that has lm-eval and transformers;
its tokenizer is that of the FOLDER. Tasks are written there: choices and texts by log-likelihood, written answers.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}\\nAnswer:"
"""
CHOICE = """
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""
WRITTEN = """
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n", "Question:", "###", "</s>", "Answer:"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
task: texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
ROWS = [
    {"question": "Two and two?", "choices": [" four", " five"], "answer": 0},
    {"question": "The colour of grass?", "choices": [" red", " green"], "answer": 1},
]


def write_tasks(folder: Path) -> None:
    """The tasks, beside their rows."""
    folder.mkdir(exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for name, kind, rest in (
        ("choices", "multiple_choice", CHOICE),
        ("written", "generate_until", WRITTEN),
    ):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file, kind=kind) + rest, encoding="utf-8")
    (folder / "texts.yaml").write_text(ROLLING.format(file=file), encoding="utf-8")


def main(address: str, tokenizer: str) -> None:
    tasks = Path(tokenizer) / "tasks"
    write_tasks(tasks)
    known = TaskManager(include_path=str(tasks))

    def scored(model: str, path: str, names: list[str], more: str = "", **settings) -> dict:
        of = f"model=base,base_url={address}/v1/{path},num_concurrent=1,max_retries=1,tokenizer_backend=huggingface"
        of += f",tokenizer={tokenizer}{more}"
        found = simple_evaluate(model=model, model_args=of, tasks=names, task_manager=known, **settings)
        return found["results"]

    found = scored("local-completions", "completions", ["choices", "written", "texts"])
    assert 0 <= found["choices"]["acc,none"] <= 1 and math.isfinite(found["texts"]["word_perplexity,none"])
    scored("local-completions", "completions", ["choices"], ",tokenized_requests=False", batch_size=2)
    scored("local-chat-completions", "chat/completions", ["written"], apply_chat_template=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
