"""Text as a stream: the same bytes however it is cut, and the right place of the first wrong one."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmi.errors import InvalidArgument, PromptError
from lmi.text import TextFile, looks_binary, utf8_blocks


def cut(data: bytes, sizes) -> list[bytes]:
    pieces, at = [], 0
    for n in sizes:
        pieces.append(data[at : at + n])
        at += n
    return [*pieces, data[at:]]


@settings(deadline=None, max_examples=200)
@given(st.text(), st.lists(st.integers(0, 7), max_size=12))
def test_any_cut_gives_the_same_bytes(text, sizes):
    data = text.encode()
    expected = data.removeprefix(b"\xef\xbb\xbf")
    assert b"".join(utf8_blocks(cut(data, sizes))) == expected
    assert b"".join(utf8_blocks(io.BytesIO(data), size=3)) == expected


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=40), st.lists(st.integers(0, 5), max_size=10))
def test_first_wrong_byte_is_where_python_finds_it(data, sizes):
    body = b"a\n" + data  # never a byte order mark
    try:
        body.decode()
        expected = None
    except UnicodeDecodeError as e:
        expected = e.start
    if expected is None:
        assert b"".join(utf8_blocks(cut(body, sizes))) == body
        return
    with pytest.raises(PromptError) as e:
        list(utf8_blocks(cut(body, sizes)))
    assert e.value.offset == expected
    line = body[:expected].count(b"\n") + 1
    assert f"(line {line:,})" in e.value.message
    assert b"".join(utf8_blocks(cut(body, sizes), errors="replace")) == body.decode("utf-8", "replace").encode()


def test_message_of_a_wrong_byte():
    data = b"line\n" * 213 + b"x" * (10_233 - 5 * 213) + b"\xe9t\xe9"
    with pytest.raises(PromptError) as e:
        list(utf8_blocks(data, name="book.txt"))
    assert e.value.message == "book.txt is not UTF-8: byte 0xE9 at offset 10,233 (line 214)"
    assert e.value.remedy == "Try: iconv -f latin1 -t utf-8 book.txt, or --errors replace"


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf16_is_recognised(mark):
    for data in (mark + b"a\x00b\x00", [mark[:1], mark[1:], b"a\x00"]):
        with pytest.raises(PromptError, match="is UTF-16"):
            list(utf8_blocks(data))


def test_byte_order_mark_is_left_out():
    assert b"".join(utf8_blocks([b"\xef", b"\xbb", b"\xbfhello"])) == b"hello"
    assert b"".join(utf8_blocks(b"\xef\xbb\xbf")) == b""
    with pytest.raises(PromptError) as e:
        list(utf8_blocks(b"\xef\xbb\xbfabc\xff"))
    assert e.value.offset == 6


@pytest.mark.parametrize("data", [b"\xef", b"\xef\xbb", b"\xff", b"ab\xe2\x82"])
def test_cut_off_end_is_an_error(data):
    with pytest.raises(PromptError, match="is not UTF-8"):
        list(utf8_blocks(data))
    assert b"".join(utf8_blocks(data, errors="replace")) == data.decode("utf-8", "replace").encode()


def test_sources():
    for source in (
        "héllo",
        "héllo".encode(),
        io.StringIO("héllo"),
        io.BytesIO("héllo".encode()),
        ["hé", b"llo"],
        iter(["héllo"]),
    ):
        assert b"".join(utf8_blocks(source)) == "héllo".encode()
    assert list(utf8_blocks("")) == []
    with pytest.raises(InvalidArgument):
        list(utf8_blocks(7))
    with pytest.raises(InvalidArgument):
        list(utf8_blocks([1, 2]))
    with pytest.raises(InvalidArgument):
        list(utf8_blocks("a", errors="ignore"))
    with pytest.raises(PromptError, match="lone surrogate"):
        list(utf8_blocks("a\ud800"))
    assert b"".join(utf8_blocks("a\ud800", errors="replace")).decode().startswith("a\ufffd")


def test_binary():
    assert looks_binary(bytes(range(256)) * 4)
    assert not looks_binary("Ünïcödé\n\ttext\r\n".encode() * 10)
    assert not looks_binary(b"")


def test_file(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"abc\n" * 5000)
    file = TextFile(path)
    assert file.size == 20_000 and file.check() == 20_000 and file.done == 0
    assert b"".join(file.blocks()) == b"abc\n" * 5000
    assert file.done == 20_000
    with pytest.raises(PromptError, match="no such prompt file"):
        TextFile(tmp_path / "none.txt")
    with pytest.raises(PromptError, match="is a directory"):
        TextFile(tmp_path)


def test_memory_is_a_block(tmp_path):
    """A source of 200 MB passes without being held."""
    import tracemalloc

    def source():
        for _ in range(200):
            yield b"x" * (1 << 20)

    tracemalloc.start()
    try:
        n = sum(len(b) for b in utf8_blocks(source()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n == 200 << 20
    assert peak < 8 << 20
