"""Chat templates that write calls of functions as those of the field do, and tokenizers with their tokens."""

from __future__ import annotations

from typing import Any

from support.tiny_tokenizers import make

SHOWN = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
HERMES = (
    SHOWN + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') }}"
    "{% for c in m.tool_calls or [] %}{% if loop.index0 > 0 or m.content %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' + (c.function.arguments | tojson) '
    "+ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (  # one call a turn, which is the whole answer
    SHOWN + "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
    '{{ \'{"name": "\' + m.tool_calls[0].function.name + \'", "parameters": \' '
    "+ (m.tool_calls[0].function.arguments | tojson) + '}' }}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (  # a list of calls behind a special token
    "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS][' }}{% for c in m.tool_calls %}"
    '{{ \'{"name": "\' + c.function.name + \'", "arguments": \' + (c.function.arguments | tojson) '
    "+ ', \"id\": \"' + c.id + '\"}' }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' + eos_token }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK = (  # the name stands before the arguments
    SHOWN + "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '<calls>' }}{% for c in m.tool_calls %}"
    "{{ '<call>function<sep>' + c.function.name + '\n```json\n' + (c.function.arguments | tojson) + '\n```<endcall>' }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}{{ '</calls>' + eos_token }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
CODER = (  # Qwen3-Coder: arguments one by one, between tags, each on lines of its own
    SHOWN + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') }}"
    "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n<function=' + c.function.name + '>\n' }}"
    "{% for k, v in c.function.arguments.items() %}{{ '<parameter=' + k + '>\n' }}"
    "{{ v if v is string else v | tojson }}{{ '\n</parameter>\n' }}{% endfor %}"
    "{{ '</function>\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GLM = (  # GLM-4.5: the name behind the tag, then tags of keys and of values
    SHOWN + "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + (m['content'] or '') }}"
    "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>' + c.function.name }}"
    "{% for k, v in c.function.arguments.items() %}{{ '\n<arg_key>' + k + '</arg_key>\n<arg_value>' }}"
    "{{ v if v is string else v | tojson }}{{ '</arg_value>' }}{% endfor %}"
    "{{ '\n</tool_call>' }}{% endfor %}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GLM4 = (  # GLM-4 of 2024: the name on a line of its own; each call is a turn, and the next role's token ends it
    SHOWN + "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '<|assistant|>' + c.function.name + '\n' + (c.function.arguments | tojson) }}{% endfor %}"
    "{% else %}{{ '<|' + m['role'] + '|>\n' + (m['content'] or '') }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ '<|observation|>' if m.tool_calls else '<|user|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ODD = (  # as a line of Python
    SHOWN + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + '(' }}"
    "{% for k, v in c.function.arguments.items() %}{{ k + '=' + (v | tojson) }}{% endfor %}"
    "{{ ')' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, "deepseek": DEEPSEEK, "coder": CODER, "glm": GLM,
    "glm4": GLM4, "odd": ODD,
}  # fmt: skip
ADDED = {
    "hermes": (["<tool_call>", "</tool_call>"], False),
    "mistral": (["[TOOL_CALLS]"], True),
    "coder": (["<tool_call>", "</tool_call>"], False),
    "glm": (["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"], False),
    "glm4": (["<|assistant|>", "<|user|>", "<|observation|>"], True),
    "deepseek": (["<calls>", "</calls>", "<call>", "<endcall>", "<sep>"], True),
}
"""Tokens of each template, and whether they are special."""
SAYS = {
    "hermes": 'One.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n{"name": "g", '
    '"arguments": {"b": ["}", "\\""]}}\n</tool_call>',
    "llama": '{"name": "f", "parameters": {"a": 1}}',
    "mistral": '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"b": ["}", "\\""]}}]',
    "deepseek": '<calls><call>function<sep>f\n```json\n{"a": 1}\n```<endcall>\n<call>function<sep>g\n```json\n'
    '{"b": ["}", "\\""]}\n```<endcall></calls>',
    "glm4": 'f\n{"a": 1}<|assistant|>g\n{"b": ["}", "\\""]}<|observation|>',
    "coder": "One.\n<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n"
    '<function=g>\n<parameter=b>\n["}", "\\""]\n</parameter>\n</function>\n</tool_call>',
    "glm": "One.\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>\n<tool_call>g\n"
    '<arg_key>b</arg_key>\n<arg_value>["}", "\\""]</arg_value>\n</tool_call>',
}
"""An answer with calls in each form."""


def calling(name: str) -> Any:
    """A tokenizer of bytes with one of the templates and its tokens."""
    import copy

    tokenizer = copy.deepcopy(make(TEMPLATES[name]))
    tokens, special = ADDED.get(name, ([], False))
    tokenizer.add_tokens(tokens, special_tokens=special)
    return tokenizer
