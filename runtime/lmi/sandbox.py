"""The place where untrusted templates run: Jinja's immutable sandbox, with bounds on what Jinja leaves unbounded.

Jinja's sandbox keeps a template from reaching Python. It does not keep it from filling the memory: 'a' * 10**9, a loop that
doubles a string with ~, nested lists that share their parts and whose text is exponential. So every value that an operator, a
call, a filter or a literal makes is weighed; operations that could make a huge one are checked before; and a deadline is kept.
"""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import contextmanager
from datetime import datetime

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

LIMIT = 1 << 20  # characters, items and digits that one value may have in all
MAX_WIDTH = 100_000  # of a padding or a precision
MAX_DEPTH = 64  # of lists in lists
_FILTERS = re.findall(
    r"\w+",
    """abs attr batch capitalize center count d default dictsort e escape first float format groupby indent int items join last
    length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum title trim
    truncate unique upper wordcount""",
)
_GROWING = ("center", "ljust", "rjust", "zfill", "replace", "join", "expandtabs", "translate")


class TemplateLimit(TemplateRuntimeError):
    """A template went over one of its limits."""


def weigh(value, limit: int = LIMIT):
    """Returns the value if all that it holds, counted as often as it would be written, weighs at most `limit`."""
    if isinstance(value, (str, bytes)):
        weight = len(value)
    elif value is None or isinstance(value, (bool, float)):
        return value
    elif isinstance(value, int):
        weight = value.bit_length() // 4
    elif isinstance(value, (list, tuple, dict, set, frozenset, Namespace)):
        weight = _weigh_nested(value, limit)
    else:
        return value  # generators, macros, undefined: what they give is weighed when it is given
    if weight > limit:
        raise TemplateLimit("a value is too large")
    return value


def _children(value):
    if isinstance(value, Namespace):
        value = value._Namespace__attrs
    if isinstance(value, dict):
        return [x for pair in value.items() for x in pair]
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()


def _weigh_nested(root, limit: int) -> int:
    """Weight of a container, its parts weighed once and counted as often as they occur. No recursion."""
    weights: dict[int, int] = {}
    stack = [(root, False, 1)]
    steps = 0
    while stack:
        value, done, depth = stack.pop()
        if done:
            weights[id(value)] = total = 1 + sum(
                _leaf(x) if not _children(x) else weights.get(id(x), limit) for x in _children(value)
            )
            if total > limit:
                raise TemplateLimit("a value is too large")
            continue
        if id(value) in weights:
            continue
        if depth > MAX_DEPTH:
            raise TemplateLimit("lists are nested too deeply")
        stack.append((value, True, depth))
        for x in _children(value):
            steps += 1
            if steps > limit:
                raise TemplateLimit("a value is too large")
            if _children(x) and id(x) not in weights:
                stack.append((x, False, depth + 1))
    return weights[id(root)]


def _leaf(value) -> int:
    if isinstance(value, (str, bytes)):
        return 1 + len(value)
    return 1 + value.bit_length() // 4 if isinstance(value, int) else 1


def _expect(size: int) -> None:
    if size > LIMIT:
        raise TemplateLimit("a value is too large")


def _check_numbers(text: str, arguments) -> None:
    """For %-formats and format(): no width in the text, nor any number that could become one, beyond MAX_WIDTH."""
    if len(text) > LIMIT or any(int(n[:12]) > MAX_WIDTH for n in re.findall(r"\d+", text) if len(n) > 5):
        raise TemplateLimit("a format is too wide")
    if "*" in text and any(isinstance(a, int) and abs(a) > MAX_WIDTH for a in arguments):
        raise TemplateLimit("a format is too wide")


class _Formatter(SandboxedFormatter):
    def format_field(self, value, format_spec):
        _check_numbers(format_spec, ())
        return super().format_field(weigh(value), format_spec)


def _checked_operator(operator: str, left, right):
    if operator == "*":
        for a, b in ((left, right), (right, left)):
            if isinstance(a, (str, bytes, list, tuple)) and isinstance(b, int):
                _expect(len(a) * max(b, 0))
        if isinstance(left, int) and isinstance(right, int):
            _expect(left.bit_length() + right.bit_length())
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int):
            _expect(left.bit_length() * abs(right))
    elif operator == "+":
        if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _expect(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        _check_numbers(left, right if isinstance(right, tuple) else (right,))


def _check_growing(name: str, text: str, arguments) -> None:
    """Before a string method or filter that can make much of little."""
    numbers = [a for a in arguments if isinstance(a, int) and not isinstance(a, bool)]
    texts = [a for a in arguments if isinstance(a, str)]
    if name in ("center", "ljust", "rjust", "zfill"):
        _expect(max(numbers, default=0))
    elif name == "expandtabs":
        _expect((text.count("\t") + 1) * max(numbers, default=8) + len(text))
    elif name == "replace" and len(texts) >= 2:
        times = text.count(texts[0]) if texts[0] else len(text) + 1
        _expect(len(text) + times * len(texts[1]))
    elif name == "join" and arguments and isinstance(arguments[0], list):
        _expect(len(text) * len(arguments[0]))
    elif name == "translate":
        raise SecurityError("translate is not available to templates")


class _Checks(NodeTransformer):
    """Sends what a template builds through `weigh`: literals of lists and dictionaries, and the ~ operator."""

    def visit_Concat(self, node, *args, **kwargs):
        node = self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes, lineno=node.lineno), " concat", [], [], None, None, lineno=node.lineno)

    def _built(self, node, *args, **kwargs):
        node = self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return node  # a tuple of names that values are assigned to
        return nodes.Filter(node, " weigh", [], [], None, None, lineno=node.lineno)

    visit_List = visit_Tuple = visit_Dict = _built


class _GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %} marks what a model wrote, for training: here its body is written as it is."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationTag],
            optimized=False,
            cache_size=0,
            finalize=weigh,
        )
        allowed = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.globals.clear()
        self.globals.update(allowed, raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.filters = {name: _bounded(name, self.filters[name]) for name in _FILTERS}
        self.filters.update({"tojson": _tojson, " concat": _concat, " weigh": weigh})

    def call_binop(self, context, operator, left, right):
        weigh(left)
        weigh(right)
        _checked_operator(operator, left, right)
        return weigh(super().call_binop(context, operator, left, right))

    def call(__self, __context, __obj, *args, **kwargs):  # the names that a template may pass are its own
        owner = getattr(__obj, "__self__", None)
        name = getattr(__obj, "__name__", "")
        if name == "join" and args:
            args = (list(_counted(args[0])), *args[1:])
        if isinstance(owner, str) and name in _GROWING:
            _check_growing(name, owner, [*args, *kwargs.values()])
        for value in (*args, *kwargs.values()):
            weigh(value)
        return weigh(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value):
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text, is_map = str(value.__self__), value.__name__ == "format_map"

        def bounded(*args, **kwargs):
            _check_numbers(text, ())
            named = args[0] if is_map else kwargs
            return weigh(_Formatter(self).vformat(text, () if is_map else args, named))

        return bounded

    def _generate(self, source, name, filename, defer_init=False):
        return super()._generate(_Checks().visit(source), name, filename, defer_init=defer_init)

    @staticmethod
    def concat(parts):
        out, size = [], 0
        for part in parts:
            size += len(part)
            _expect(size)
            out.append(part)
        return "".join(out)


def _bounded(name: str, function):
    """A filter whose arguments are checked and whose result is weighed."""
    from functools import wraps

    passes = getattr(function, "jinja_pass_arg", None)  # some filters get the environment or the context first

    @wraps(function)
    def checked(*args, **kwargs):
        first = 1 if passes else 0
        value, *rest = args[first:]
        weigh(value)
        if name == "join":  # whatever it joins becomes a list of bounded length first
            value = list(_counted(value))
            args = (*args[:first], value, *rest)
        rest += kwargs.values()
        for a in rest:
            weigh(a)
        _check_filter(name, value, rest)
        result = function(*args, **kwargs)
        return weigh(result) if not hasattr(result, "__next__") else _counted(result)

    return checked


def _check_filter(name: str, value, arguments) -> None:
    if name == "join":
        separator = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        _expect(len(separator) * len(value))
    elif name == "indent":
        width = arguments[0] if arguments else 4
        width = len(width) if isinstance(width, str) else width
        if isinstance(width, int) and isinstance(value, str):
            _expect(width * (value.count("\n") + 1) + len(value))
    elif name == "format" and isinstance(value, str):
        _check_numbers(value, arguments)
    elif name in ("center", "replace"):
        _check_growing(name, str(value), arguments)
    elif name == "batch":
        numbers = [a for a in arguments if isinstance(a, int)]
        _expect(max(numbers, default=0))
    elif name == "round":
        numbers = [a for a in arguments if isinstance(a, int)]
        if any(abs(n) > 300 for n in numbers):
            raise TemplateLimit("rounds to too many digits")
    elif name in ("sum", "map"):
        for item in value if isinstance(value, (list, tuple)) else ():
            weigh(item)


def _counted(items):
    """A lazy result, ended when it has given too much."""
    total = 0
    for item in items:
        total += 1 + (len(item) if hasattr(item, "__len__") else 0)
        _expect(total)
        yield weigh(item)


def _concat(parts) -> str:
    _expect(sum(len(p) if isinstance(p, str) else 0 for p in parts))
    return weigh("".join(str(weigh(p)) for p in parts))


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """As Hugging Face's templates expect it: no HTML escapes."""
    weigh(value)
    if isinstance(indent, int) and indent > 16 or isinstance(indent, str) and len(indent) > 16:
        raise TemplateLimit("an indent is too wide")
    if separators is not None and any(len(s) > 16 for s in separators):
        raise TemplateLimit("a separator is too long")
    return weigh(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys))


def _raise_exception(message):
    raise TemplateRuntimeError(str(message)[:500])


def _strftime_now(format):
    if len(format) > 256 or re.search(r"%[^a-zA-Z%]*\d", format):
        raise TemplateLimit("a date format is too long")
    return datetime.now().strftime(format)


@contextmanager
def deadline(end: float):
    """Ends pure Python code of this thread that runs past a time.monotonic() of `end`, with TemplateLimit. Templates compile to
    such code, and single operations in it are bounded by weight."""

    def trace(frame, event, argument):
        if time.monotonic() > end:
            raise TemplateLimit("takes too long")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
