"""Tests of benchmarks/kernels.py, on traces that are written here."""

import gzip
import json

import pytest

from benchmarks import kernels


def trace(*runs, process="/device:GPU:0"):
    """Events of kernels (name, start, duration), beside one of the host's."""
    names = [("process_name", 1, process), ("process_name", 7, "/host:CPU")]
    events = [
        {"ph": "M", "name": name, "pid": pid, "args": {"name": what}} for name, pid, what in names
    ]
    events.append({"ph": "X", "name": "gemm on the host", "pid": 7, "ts": 0, "dur": 999})
    events += [{"ph": "X", "name": n, "pid": 1, "ts": at, "dur": time} for n, at, time in runs]
    return {"traceEvents": events}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x32__5x_cublas", "matrix products"),
        ("gemm_fusion_dot_10", "matrix products"),
        ("cudnn_generated_conv_fprop", "convolutions"),
        ("loop_convert_fusion", "element by element"),
        ("input_reduce_select_fusion", "reductions"),
        ("input_transpose_fusion", "transposes, patches"),
        ("memcpy32_post", "copies"),
        ("loop_add_fusion_2", "element by element"),
    ],
)
def test_kinds(name, kind):
    assert kernels.kind(name) == kind


def test_the_table_counts_the_devices_kernels_alone():
    found = kernels.kernels(trace(("gemm_1", 0, 300), ("loop_add", 400, 100), ("gemm_2", 450, 150)))
    # Two overlap, and between two others nothing runs.
    assert kernels.busy(found) == (500, 600)
    assert kernels.table(found).splitlines()[2:] == [
        "| matrix products | 2 | 0.45 | 82% |",
        "| element by element | 1 | 0.10 | 18% |",
        "",
        "A kernel ran in 83% of 0.60 ms.",
    ]


def test_a_trace_in_a_file(tmp_path, capsys):
    file = tmp_path / "host.trace.json.gz"
    file.write_bytes(gzip.compress(json.dumps(trace(("memset", 5, 10))).encode()))
    assert kernels.main([str(file)]) == 0
    assert "| copies | 1 | 0.01 | 100% |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing", "is no trace of a run"),
        (gzip.compress(b"{}"), "is no trace of a run"),
        (gzip.compress(json.dumps(trace()).encode()), "has no kernels"),
    ],
)
def test_what_is_no_trace_is_refused(content, message, tmp_path, capsys):
    file = tmp_path / "host.trace.json.gz"
    file.write_bytes(content)
    assert kernels.main([str(file)]) == 2
    assert message in capsys.readouterr().err
    assert kernels.main([]) == 2
