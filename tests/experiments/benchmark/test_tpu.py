"""What is read from a compiler's answer; the compiler itself where it is installed."""

import importlib.util
import json
from dataclasses import asdict

import pytest

from data_pipeline.errors import InputError
from experiments.benchmark import tpu
from experiments.benchmark.figures import Options
from experiments.benchmark.tpu_hlo import array_bytes, collective_bytes, traffic

HLO = """HloModule jit_step

%fused_computation (param_0: bf16[2,8,4,4,32], param_1: bf16[3,3,3,32,32]) -> bf16[2,8,4,4,32] {
  %param_0 = bf16[2,8,4,4,32]{4,3,2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[3,3,3,32,32]{4,3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[2,8,4,4,32]{4,3,2,1,0:T(8,128)(2,1)} convolution(%param_0, %param_1), window={size=3x3x3}
}

ENTRY %main.1 (x: bf16[2,8,4,4,32], w: bf16[3,3,3,32,32]) -> f32[256,128] {
  %x = bf16[2,8,4,4,32]{4,3,2,1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[3,3,3,32,32]{4,3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %fusion.1 = bf16[2,8,4,4,32]{4,3,2,1,0:T(8,128)(2,1)} fusion(%x, %w), kind=kOutput, calls=%fused_computation
  %slice-start.1 = ((bf16[2,8,4,4,32]{4,3,2,1,0:T(8,128)(2,1)}), bf16[2,2,4,4,32]{4,3,2,1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%x)
  %slice-done.1 = bf16[2,2,4,4,32]{4,3,2,1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start.1)
  %copy.1 = f32[256,128]{1,0:T(8,128)} copy(%fusion.1)
  %all-reduce-start.1 = (f32[256,128]{1,0:T(8,128)}, f32[256,128]{1,0:T(8,128)}) all-reduce-start(%copy.1), to_apply=%sum
  ROOT %all-reduce-done.1 = f32[256,128]{1,0:T(8,128)} all-reduce-done(%all-reduce-start.1)
}
"""  # noqa: E501  an instruction is a line


def test_traffic_counts_padding_and_not_what_stays_on_the_chip():
    padded = 2 * 8 * 4 * 8 * 128 * 2  # [2, 8, 4, 4 to 8, 32 to 128] bfloat16
    result = 256 * 128 * 4
    assert traffic(HLO) == {
        "convolutions": 2 * padded,
        "copies": padded + result,
        "collectives": 2 * result,
        "prefetches": padded / 4,
    }


def test_a_ring_sends_what_it_reduces_almost_twice():
    assert collective_bytes(HLO, 4) == 2 * 3 / 4 * 256 * 128 * 4
    assert collective_bytes(HLO, 1) == 0


def test_bytes_of_a_tuple():
    assert array_bytes("(f32[2,3]{1,0}, bf16[4]{0}, f32[]{:T(128)}, pred[8]{0})") == 24 + 8 + 4 + 8


def test_the_roofline_is_the_slower_of_arithmetic_and_traffic():
    assert tpu.roofline(197e12, 0) == 1 and tpu.roofline(0, 819e9) == 1
    assert tpu.roofline(197e12, 2 * 819e9) == 2


def test_a_missing_libtpu_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu.*pip install 'kd_jax\[tpu\]'"):
        tpu.measure(Options(small=True))


def test_the_part_tells_memory_first_and_says_that_nothing_ran(monkeypatch):
    seen = {}

    def answer(config, topology):
        seen.update(config=config, topology=topology)
        return tpu.Compiled(5 * 10**9, 10**9, 2e13, 1e11, 0.12, 60.0, 0.0, {"convolutions": 3e10, "other": 1e10})

    monkeypatch.setattr(tpu, "compile_step", answer)
    part = tpu.measure(Options())
    config = seen["config"]
    assert config.data.patch == (128, 128, 128) and config.teacher.features == (32, 64, 128, 256, 320, 320)
    assert (config.train.batch, config.train.precision, seen["topology"]) == (2, "bfloat16", "v5e:1x1")
    assert (part.figures[0].ours, part.figures[0].unit, part.ratio) == (6.0, "GB", None)
    assert any("nothing ran" in note for note in part.notes) and "convolutions 75%" in part.notes[-1]


def test_an_answer_travels_between_processes():
    compiled = tpu.Compiled(1, 2, 3.0, 4.0, 5.0, 6.0, 7.0, {"other": 8.0})
    assert tpu.Compiled(**json.loads(json.dumps(asdict(compiled)))) == compiled
