"""The rules of tests/lint_includes.py find what they are for."""

import lint_includes
import pytest


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("native/base/text.c", '#include "gguf/gguf.h"'),
        ("native/quant/quant.c", '#include "gguf/gguf.h"'),
        ("native/kernels/kernels.c", '#include "lambda/rope.h"'),
        ("native/model/spec.c", '#include "backend/backend.h"'),
        ("native/engine/session.c", '#include "sampler.h"'),
        ("native/cellar/new.c", '#include "base/text.h"'),
        ("native/kernels/kernels.c", "#include <immintrin.h>"),
        ("native/kernels/matmul_avx2.c", "#include <arm_neon.h>"),
        ("native/engine/session.c", "#include <unistd.h>"),
        ("native/base/cpu.c", 'const char *isa = getenv("LMI_ISA");'),
        ("native/gguf/gguf.c", 'printf("%d", 1);'),
        ("native/gguf/gguf.c", 'fprintf(stderr, "x");'),
        ("native/gguf/gguf.c", "if (bad) abort();"),
        ("native/gguf/gguf.c", "assert(n > 0);"),
        ("native/gguf/gguf.c", "n = strtoull(text, NULL, 10);"),
    ],
)
def test_a_broken_rule_is_found(name, line):
    problems = lint_includes.check_c(name, f"/* A file. */\n{line}\n")
    assert len(problems) == 1
    assert problems[0].startswith(f"{name}:2: ")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("native/gguf/gguf.c", '#include "quant/quant.h"'),
        ("native/engine/session.c", '#include "lmi.h"'),
        ("native/kernels/matmul_avx512.c", "#include <immintrin.h>"),
        ("native/base/file.c", "#include <unistd.h>"),
        ("native/base/status.c", 'snprintf(text, 32, "abort()");'),
        ("native/engine/api.c", "/* never calls exit() */"),
        ("native/engine/api.c", "encoder->exit(1); _Static_assert(1, \"\");"),
    ],
)
def test_what_is_allowed_passes(name, line):
    assert lint_includes.check_c(name, line) == []


@pytest.mark.parametrize(
    ("name", "text", "n"),
    [
        ("runtime/lmi/model.py", "from lmi.cli import main", 1),
        ("runtime/lmi/model.py", "def run():\n    import lmi.server.app\n", 1),
        ("runtime/lmi/model.py", "import lmi_convert", 1),
        ("runtime/lmi/cli/run.py", "from lmi.cli import console", 0),
        ("runtime/lmi/__main__.py", "from lmi.cli.main import main", 0),
    ],
)
def test_python_rules(name, text, n):
    assert len(lint_includes.check_python(name, text)) == n
