"""A client renders chat templates as transformers does, for the kinds of templates that models have."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cosmopedia.core.errors import DataError
from cosmopedia.generation.chat import ChatTokenizer
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Request, completion_key
from tests.support.dispatch import SAMPLING
from tests.support.prompt_rows import write_model

TEMPLATES = {
    "inst": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
        "{{ ' [INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "turns": (
        "{% for message in messages %}\n    {{- '<|start|>' + message.role + '\\n' + message.content | trim }}\n"
        "{% endfor %}\n{% if add_generation_prompt %}\n{{ '<|start|>assistant\\n' }}{% endif %}\n"
    ),
    "tools": (
        "{%- if tools %}tools {{ tools | tojson }}{% endif %}{% set ns = namespace(first=true) %}"
        "{% for m in messages %}{% if not ns.first %}{% continue %}{% endif %}{% set ns.first = false %}"
        "{{ m | tojson(indent=2) }} {{ m['content'].split('x') | length }}{% endfor %}{{ documents is defined }}"
    ),
    "system": (
        "{% if messages[0]['role'] != 'system' %}be kind{% endif %}{% for m in messages[:1] %}{{ m.content }}"
        "{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}"
    ),
}
TEMPLATES["lines"] = "\n  {% if true %}\n  a\n  {% endif %}\n{{ messages[0]['content'] }}\n\n"
TEMPLATES["set"] = "{% set messages = messages[-1:] %}{% set x = bos_token %}{{ x }}{{ messages[0].content }}\n  "
PROMPTS = [
    "Write about rain.",
    "  spaces  and\n\nlines <s> {{ bos_token }} é 漢 \U0001f327 \"quoted\" 'x' <b>&amp;",
    "",
]


def with_template(folder: Path, template: object, **config: object) -> Path:
    path = folder / "models/generator/tokenizer_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "eos_token": "</s>", "chat_template": template, **config}))
    return folder / "models/generator"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_rendered_and_counted_as_transformers_does(name: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    folder = with_template(tmp_path, TEMPLATES[name])
    ours, theirs = ChatTokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}]
        wanted = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        rendered = ours.render(prompt)
        assert rendered == wanted.removeprefix("<s>")
        assert ours.count([rendered]) == [len(theirs(rendered)["input_ids"])]


def test_a_template_in_a_file_of_its_own_or_among_several_is_found(tmp_path: Path) -> None:
    write_model(tmp_path)
    several = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": "yes {{ messages[0].content }}"},
    ]
    folder = with_template(tmp_path, several)
    assert ChatTokenizer(folder).render("x") == "yes x"
    (folder / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    assert ChatTokenizer(folder).render("x") == "file x"


def test_a_broken_tokenizer_is_named_with_its_folder(tmp_path: Path) -> None:
    write_model(tmp_path)
    for template, message in (
        (None, "has no chat template"),
        ("{% for %}", "is not a Jinja template"),
        ("{{ raise_exception('system first') }}", "refuses a user's turn: system first"),
        ("{{ messages.__class__.__mro__ }}", "refuses a user's turn"),
    ):
        folder = with_template(tmp_path, template)
        with pytest.raises(DataError, match=message) as error:
            ChatTokenizer(folder).render("x")
        assert str(folder) in str(error.value)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="holds no tokenizer"):
        ChatTokenizer(folder)


def test_a_system_prompt_stands_in_front_and_is_part_of_the_key(tmp_path: Path) -> None:
    write_model(tmp_path)
    path = tmp_path / "models/generator/generator.json"
    plain = GenerationModel.read(path.parent)
    path.write_text(json.dumps({**json.loads(path.read_text()), "system_prompt": "Be brief."}))
    directed = GenerationModel.read(path.parent)
    assert directed.render("Write.") == "[system] Be brief.[user] Write. [assistant]"
    assert plain.render("Write.") == "[user] Write. [assistant]"
    keys = {completion_key(Request("a", "Write.", 1, 0, m.render), m.identity, SAMPLING) for m in (plain, directed)}
    assert len(keys) == 2
    strict = with_template(tmp_path, TEMPLATES["inst"])
    with pytest.raises(DataError, match=r"refuses a system prompt \(generator.system_prompt\) and a user's turn"):
        ChatTokenizer(strict).render("Write.", "Be brief.")
