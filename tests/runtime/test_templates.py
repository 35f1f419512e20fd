"""Chat templates: real ones give what plain Jinja gives; hostile ones give an error, soon and in little memory."""

import datetime
import json
import resource
import time

import jinja2
import pytest
from lmi.errors import TemplateError
from lmi.templates import ChatTemplate

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% endif %}{% for m in loop_messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system is defined %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)


def plain(source: str, messages, **context) -> str:
    """As transformers renders it."""

    def fail(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    env.globals |= {"raise_exception": fail, "strftime_now": lambda f: datetime.datetime.now().strftime(f)}
    values = {"messages": messages, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
    return env.from_string(source).render(**values | {"tools": None, "documents": None} | context)


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello, \"you\" <b>&</b> 'ünï'\n\n"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": " What now? {{ 7*7 }} "},
]


def agrees(source: str, messages) -> None:
    ours = ChatTemplate(source, bos="<s>", eos="</s>")
    try:
        expected = plain(source, messages)
    except jinja2.exceptions.TemplateError:
        with pytest.raises(TemplateError):
            ours.render(messages)
        return
    assert ours.render(messages) == expected


@pytest.mark.parametrize("source", [CHATML, LLAMA2, GEMMA])
def test_known_templates(source):
    for messages in (TALK, TALK[1:], TALK[1:2], TALK[:2]):
        agrees(source, messages)


def test_real_templates(data):
    files = sorted((data / "templates").glob("*.jinja"))
    assert files
    tool = {
        "type": "function",
        "function": {"name": "add", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
    for file in files:
        source = file.read_text()
        for messages in (TALK, TALK[1:], TALK[1:2]):
            agrees(source, messages)
        ours = ChatTemplate(source, bos="<s>", eos="</s>")
        try:
            expected = plain(source, TALK[1:], tools=[tool])
        except Exception:
            continue
        assert ours.render(TALK[1:], tools=[tool]) == expected, file.name


def words(segments) -> list[str]:
    return [s.kind for s in segments]


def test_segments_put_the_users_words_outside():
    segments, strip = ChatTemplate(CHATML).segments(system="Be brief.")
    assert words(segments) == ["template", "system", "template", "user", "template"]
    assert "".join(s.text for s in segments) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not strip


def test_segments_of_a_template_that_trims():
    segments, strip = ChatTemplate(LLAMA2, bos="<s>").segments()
    assert [s.text for s in segments] == ["<s>[INST] ", "", " [/INST]"]
    assert strip
    assert ChatTemplate(LLAMA2, bos="<s>").begins_with_bos(segments)
    assert not ChatTemplate(CHATML, bos="<s>").begins_with_bos(ChatTemplate(CHATML).segments()[0])
    assert not ChatTemplate(CHATML, bos="").begins_with_bos(segments)


def test_without_a_system_role_the_system_text_goes_to_the_user():
    segments, _ = ChatTemplate(GEMMA, bos="<s>").segments(system="Be brief.")
    assert words(segments) == ["template", "system", "template", "user", "template"]
    assert segments[2].text == "\n\n"


@pytest.mark.parametrize(
    "source",
    ["no words at all", "{{ messages[-1].content }}{{ messages[-1].content }}", "{{ messages[-1].content | upper }}"],
)
def test_template_that_does_not_show_the_words_once(source):
    with pytest.raises(TemplateError, match="exactly once"):
        ChatTemplate(source).segments()


def test_generation_tag_is_written_through():
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert ChatTemplate(source).render([{"role": "user", "content": "hi"}]) == "hi"


def test_arguments_reach_the_template():
    assert ChatTemplate("{{ think }}").render([], think=True) == "True"
    assert ChatTemplate("{{ add_generation_prompt }}").render([], add_generation_prompt=False) == "False"


NESTED = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"
SPACES = "{% set n0 = namespace(a=1) %}" + "".join(
    f"{{% set n{i} = namespace(a=1) %}}{{% set n{i}.a = n{i - 1} %}}{{% set n{i}.b = n{i - 1} %}}" for i in range(1, 40)
)


def grown(start: str, step: str) -> str:
    return NESTED.replace("START", start).replace("STEP", step)


BOMBS = {
    "product": "{{ 'a' * 10**9 }}",
    "product of a list": "{{ ([1] * 10**9)|length }}",
    "power": "{{ 10 ** (10 ** 8) }}",
    "squares": grown("3", "ns.x * ns.x") + "{{ ns.x }}",
    "doubling with ~": grown("'aaaa'", "ns.x ~ ns.x") + "{{ ns.x }}",
    "doubling with +": grown("'aaaa'", "ns.x + ns.x") + "{{ ns.x }}",
    "doubling a list": grown("[1]", "ns.x + ns.x") + "{{ ns.x|length }}",
    "lists that share": grown("[1]", "[ns.x, ns.x]") + "{{ ns.x }}",
    "tuples that share, as a key": grown("(1,)", "(ns.x, ns.x)") + "{{ {ns.x: 1} }}",
    "dictionaries that share": grown("1", "dict(a=ns.x, b=ns.x)") + "{{ ns.x|tojson }}",
    "namespaces that share": grown("1", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "comparing what shares": "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "namespace in itself": "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}",
    "assigned namespaces, written": SPACES + "{{ n39 }}",
    "assigned namespaces, |string": SPACES + "{{ n39|string|length }}",
    "assigned namespaces, %": SPACES + "{{ '%s' % n39 }}",
    "assigned namespaces, format": SPACES + "{{ '{}'.format(n39) }}",
    "assigned namespaces, |upper": SPACES + "{{ n39|upper|length }}",
    "assigned namespaces, raise": SPACES + "{{ raise_exception(n39) }}",
    "macros": "{% macro m0() %}aaaaaaaaaaaaaaaa{% endmacro %}"
    + "".join(f"{{% macro m{i}() %}}{{{{ m{i - 1}() }}}}{{{{ m{i - 1}() }}}}{{% endmacro %}}" for i in range(1, 45))
    + "{{ m44() }}",
    "set blocks": "{% set x0 %}aaaaaaaaaaaaaaaa{% endset %}"
    + "".join(f"{{% set x{i} %}}{{{{ x{i - 1} }}}}{{{{ x{i - 1} }}}}{{% endset %}}" for i in range(1, 45))
    + "{{ x44|length }}",
    "a set block of much": "{% set a = 'a' * 1000000 %}{% set x %}{% for i in range(600) %}{{ a }}{% endfor %}{% endset %}"
    "{{ x|length }}",
    "much output": "{% for i in range(100000) %}{% for j in range(100000) %}aaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
    "much time": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "much time in filters": "{% for i in range(100000) %}{% set x = ('a' * 100000)|title %}{% endfor %}",
    "long range": "{{ range(10**9)|list|length }}",
    "recursive loop": "{% for i in range(100000) recursive %}{{ loop(range(100000)) }}{% endfor %}",
    "|replace": "{{ ('a' * 100000)|replace('a', 'b' * 100000)|length }}",
    ".replace": "{{ ('a' * 100000).replace('a', 'b' * 100000)|length }}",
    "|center": "{{ 'a'|center(10**9)|length }}",
    ".center": "{{ 'a'.center(10**9)|length }}",
    ".ljust": "{{ 'a'.ljust(10**9)|length }}",
    ".zfill": "{{ 'a'.zfill(10**9)|length }}",
    ".expandtabs": "{{ ('\t' * 100000).expandtabs(100000)|length }}",
    "% width": "{{ '%1000000000s' % 'a' }}",
    "% width from a value": "{{ '%*d' % (10**9, 1) }}",
    "|format": "{{ '%1000000000s'|format('a') }}",
    ".format": "{{ '{:>1000000000}'.format('a') }}",
    ".format, nested": "{{ '{:>{}}'.format('a', 10**9) }}",
    ".format, indexed": "{{ '{0:>{1[0]}}'.format('a', [10**9]) }}",
    ".format_map": "{{ '{a:>{b}}'.format_map({'a': 1, 'b': 10**9}) }}",
    "|join": "{{ range(100000)|join('b' * 100000)|length }}",
    "|join of a text": "{{ ('a' * 100000)|join('b' * 100000)|length }}",
    ".join": "{{ ('b' * 100000).join(range(100000)|map('string'))|length }}",
    ".join of a text": "{{ ('b' * 100000).join('a' * 100000)|length }}",
    "|indent": "{{ ('\n' * 100000)|indent(100000)|length }}",
    "|indent with a text": "{{ ('\n' * 100000)|indent('b' * 10000, true)|length }}",
    "|tojson(indent)": "{{ range(1000)|list|tojson(indent=10**9) }}",
    "|batch": "{{ [1]|batch(10**9, 'x')|list|length }}",
    "|round": "{{ 1.5|round(10**9) }}",
    "|sum of lists": "{{ ([[1] * 1000] * 1000)|sum(start=[])|length }}",
    "strftime width": "{{ strftime_now('%1000000000d') }}",
    "strftime width with a flag": "{{ strftime_now('%_1000000000d') }}",
    "parentheses": "{{ " + "(" * 6000 + "1" + ")" * 6000 + " }}",
    "blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "macro of itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "size": "a" * 300_000,
}
ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a helper": "{{ raise_exception.__globals__['os'] }}",
    "globals of namespace": "{{ namespace.__init__.__globals__ }}",
    "format": "{{ '{0.__class__.__mro__}'.format('a') }}",
    "append": "{{ messages.append(1) }}",
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "lipsum": "{{ lipsum.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "unknown tag": "{% frobnicate %}",
    "unknown filter": "{{ 'a'|xmlattr }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused_soon_and_small(name):
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateError):
        ChatTemplate(BOMBS[name]).render([{"role": "user", "content": "hi"}])
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert time.process_time() - began < 5  # the limit is 2 s
    assert grown_kib < 256 * 1024


@pytest.mark.parametrize("name", ESCAPES)
def test_escape_is_refused(name):
    with pytest.raises(TemplateError):
        ChatTemplate(ESCAPES[name]).render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''|attr('__class__') }}",
        "{{ ('{0.__class__}'|attr('format'))('a') }}",
        "{{ self._TemplateReference__context }}",
        "{{ raise_exception.__code__ }}",
    ],
)
def test_private_names_are_nothing(source):
    assert ChatTemplate(source).render([]) == ""


def test_rendering_leaves_no_trace_function():
    import sys

    before = sys.gettrace()
    ChatTemplate(CHATML).render(TALK)
    with pytest.raises(TemplateError):
        ChatTemplate("{{ 1/0 }}").render(TALK)
    assert sys.gettrace() is before


def test_long_messages_are_not_a_bomb():
    """The caps are for what a template makes, not for what it is given: half a megabyte of conversation renders."""
    text = ChatTemplate(CHATML).render([{"role": "user", "content": "word " * 100_000}])
    assert len(text) > 500_000
