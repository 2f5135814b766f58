"""The compiled operators against XLA's own; without a C++ compiler there is nothing to test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from kd_jax.native import __main__ as command
from kd_jax.native import library, operators
from kd_jax.ops.operators import (
    NEGATIVE_SLOPE,
    NORM_EPSILON,
    conv3d,
    conv3d_plain,
    instance_norm,
    instance_norm_leaky_relu,
    instance_norm_plain,
    leaky_relu,
)
from tests.kd_jax.ops.forms import assert_agree, draw, lowered, shapes

ROOT = Path(__file__).resolve().parents[3]
_without_compiler = shutil.which(os.environ.get(library.COMPILER, "g++")) is None


def needs_compiler(test):
    """The library is compiled for these tests, which takes a quarter of a minute."""
    return pytest.mark.slow(pytest.mark.skipif(_without_compiler, reason="no C++ compiler")(test))


DIRECT, WINOGRAD = 1e-5, 4e-5
"""Rounding of plain sums of up to 40,000 products, and of Winograd's, relative to the largest value."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The library in the test suite's own cache, loaded and switched on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "user_cache_path", lambda name: ROOT / ".cache" / name)
        patch.delenv(library.SWITCH)
        library.build()
        library.lanes.cache_clear()
        assert library.available()
        yield
    library.lanes.cache_clear()


@needs_compiler
@pytest.mark.parametrize(
    ("batch", "size", "kernel", "stride", "channels", "features"),
    [
        (2, (6, 10, 9), (3, 3, 3), (1, 1, 1), 16, 32),
        (1, (12, 16, 16), (3, 3, 3), (1, 1, 1), 64, 32),
        (1, (9, 17, 33), (3, 3, 3), (1, 1, 1), 32, 48),  # several blocks of tiles, the last ones cut
        (1, (40, 24, 40), (3, 3, 3), (1, 1, 1), 16, 16),  # so many that each thread takes its own
        (1, (7, 8, 12), (1, 3, 3), (1, 1, 1), 48, 16),
        (1, (2, 3, 3), (3, 3, 3), (1, 1, 1), 32, 16),  # too small to transform
        (2, (6, 9, 10), (3, 3, 3), (2, 2, 2), 16, 32),
        (1, (5, 9, 10), (1, 3, 3), (1, 2, 2), 16, 48),
        (1, (6, 7, 5), (3, 3, 3), (1, 1, 1), 4, 32),  # modalities
        (1, (6, 7, 5), (3, 3, 3), (1, 1, 1), 2, 16),
        (1, (8, 7, 6), (5, 3, 1), (3, 2, 1), 16, 16),
        (1, (1, 1, 1), (3, 3, 3), (2, 2, 2), 16, 16),
        (1, (5, 4, 6), (1, 1, 1), (2, 2, 2), 16, 16),
    ],
)
def test_convolution_equals_the_plain_form(compiled, batch, size, kernel, stride, channels, features):
    x, w = draw((batch, *size, channels), (*kernel, channels, features))
    for winograd, tolerance in ((False, DIRECT), (True, WINOGRAD)):
        form = lambda x, w, g=winograd: operators.conv3d(x, w, stride, g)  # noqa: E731
        assert_agree([form], lambda x, w: conv3d_plain(x, w, stride), x, w, rtol=0, atol=tolerance)


@needs_compiler
@settings(max_examples=6)
@given(
    size=st.tuples(*[st.integers(1, 9)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
    kernel=st.tuples(*[st.sampled_from([1, 3])] * 3),
    channels=st.sampled_from([1, 3, 16]),
)
def test_any_convolution_equals_the_plain_form(compiled, size, stride, kernel, channels):
    x, w = draw((1, *size, channels), (*kernel, channels, 16))
    form, plain = (lambda x, w, f=f: f(x, w, stride) for f in (operators.conv3d, conv3d_plain))
    assert_agree([form], plain, x, w, rtol=0, atol=WINOGRAD)


@needs_compiler
def test_winograds_sums_are_exact_where_rounding_has_no_part(compiled):
    # Integers, the kernel's divisible by 24²: all 36 points and their sums are integers float32 holds exactly.
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-1, 2, (1, 5, 9, 9, 16)) * (np.arange(16) == 3), jnp.float32)
    w = jnp.asarray(576 * rng.integers(-1, 2, (3, 3, 3, 16, 16)), jnp.float32)
    np.testing.assert_array_equal(operators.conv3d(x, w, (1, 1, 1)), conv3d_plain(x, w, (1, 1, 1)))


@needs_compiler
@pytest.mark.parametrize(
    ("slope", "reference"),
    [(NEGATIVE_SLOPE, lambda *a: leaky_relu(instance_norm_plain(*a))), (1.0, instance_norm_plain)],
)
def test_norm_equals_its_definition(compiled, slope, reference):
    x, scale, bias = draw((2, 6, 9, 10, 32), 32, 32)
    form = lambda *a: operators.instance_norm(*a, NORM_EPSILON, slope)  # noqa: E731
    assert_agree([form], reference, x, scale, bias, rtol=0, atol=5e-6)


@needs_compiler
def test_norm_keeps_the_variance_of_a_nearly_constant_channel(compiled):
    x, scale, bias = draw((1, 20, 30, 40, 16), (16,), (16,))
    x += 1e3  # the difference of two large sums would lose it
    exact = np.asarray(x, np.float64)
    normal = (exact - exact.mean((1, 2, 3))) / np.sqrt(exact.var((1, 2, 3)) + NORM_EPSILON)
    found = operators.instance_norm(x, scale, bias, NORM_EPSILON, 1.0)
    np.testing.assert_allclose(found, normal * np.asarray(scale) + np.asarray(bias), atol=3e-4)


@needs_compiler
def test_operators_take_the_compiled_form_where_it_serves(compiled):
    def calls(form, *sizes, dtype=jnp.float32, platform="cpu"):
        operations = lowered(form, *shapes(*sizes, dtype=dtype), platform=platform)
        return sum(op.target.startswith("kd_") for op in operations)

    convolve = lambda x, w: conv3d(x, w, (1, 1, 1))  # noqa: E731
    volume = (1, 8, 8, 8, 16)
    assert calls(convolve, volume, (3, 3, 3, 16, 16)) == 1
    assert calls(convolve, volume, (3, 3, 3, 16, 12)) == 0
    assert calls(convolve, volume, (3, 3, 3, 16, 16), dtype=jnp.bfloat16) == 0
    assert calls(convolve, volume, (3, 3, 3, 16, 16), platform="tpu") == 0
    for norm in (instance_norm, instance_norm_leaky_relu):
        assert calls(norm, volume, (16,), (16,)) == 1
        assert calls(norm, volume, (16,), (16,), platform="cuda") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.SWITCH, "0")
        assert calls(convolve, volume, (3, 3, 3, 16, 16)) == 0


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads(compiled):
    code = (
        "import jax, numpy as np, sys; from pathlib import Path; from kd_jax.native import library, operators\n"
        "library.user_cache_path = lambda name: Path('.cache') / name\n"
        "assert library.available()\n"
        "x = jax.random.normal(jax.random.key(0), (1, 12, 24, 24, 32)); w = x[0, :3, :3, :3, :, None] * x[0, 0, 0, 0]\n"
        "loss = lambda x, w: operators.instance_norm(operators.conv3d(x, w, (1, 1, 1)), w[0, 0, 0, 0], "
        "w[1, 0, 0, 0], 1e-5, 0.01)\n"
        "y, gradient = jax.vjp(jax.jit(loss), x, w)\n"
        "import zlib; print([zlib.crc32(np.asarray(a).tobytes()) for a in (y, *gradient(x))])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, library.SWITCH: "1", "NPROC": threads, "XLA_FLAGS": ""},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "4")
    }
    assert len(found) == 1


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(library, "user_cache_path", lambda name: tmp_path)
    monkeypatch.setenv(library.COMPILER, "no-such-compiler")
    with pytest.raises(InputError, match=r"no C\+\+ compiler 'no-such-compiler': install one"):
        library.build()
    assert list(tmp_path.iterdir()) == []
    assert not library.library_path().exists()


def test_a_compiler_that_fails_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "user_cache_path", lambda name: tmp_path)
    monkeypatch.setenv(library.COMPILER, "false")
    with pytest.raises(InputError, match="could not compile the operators"):
        library.build()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@needs_compiler
def test_the_command_says_where_the_library_is(compiled, capsys):
    assert command.main([]) == 0
    assert str(library.library_path()) in capsys.readouterr().out
