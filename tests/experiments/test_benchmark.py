import json

import pytest

from experiments import benchmark
from fedlite.errors import UserError


@pytest.fixture(autouse=True)
def _parsed_flags():
    if not benchmark.flags.FLAGS.is_parsed():
        benchmark.flags.FLAGS(["test"])


@pytest.mark.parametrize("method", ["full", "frozen", "adapters", "fedobd"])
def test_every_model_has_a_round(method):
    row, _ = benchmark.measure([benchmark.Case(method, "map", "patches", 1)], 2, 0.01, 1)
    assert row["clients_per_second"] > 0 and row["flops_per_client"] > 0


def test_measures_a_tiny_case(optimized):
    cases = [benchmark.Case("dropout", "map", "patches", 2)]
    row, ceiling = benchmark.measure(cases, examples=4, seconds=0.01, repeats=1)
    assert row["clients_per_second"] > 0 and ceiling["matrix_rate"] > 0
    # A client's 4 examples at the half-width model's FLOPs.
    assert row["flops_per_client"] == pytest.approx(4 * 18.8e6, rel=0.02)
    expected = row["clients_per_second"] * row["flops_per_client"] / ceiling["matrix_rate"]
    assert row["matrix_rate_fraction"] == pytest.approx(expected)
    report = {
        "command": "python -m experiments.benchmark",
        "code": "commit 0",
        "machine": "m",
        "devices": 1,
        "examples": 4,
        "repeats": 1,
        "matrix_size": 2048,
        "cases": [row, {**cases[0]._asdict(), "skipped": "too slow"}],
        **ceiling,
    }
    table = benchmark.markdown(report)
    assert (
        f"| dropout | map | patches | float32 | 2 | 1 | {row['clients_per_second']:.1f} [" in table
    )
    assert "not run: too slow" in table
    json.dumps(report)


def test_refuses_unknown_cases():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark.flags.FLAGS["out"], "value", "x.json")
        patch.setattr(benchmark.flags.FLAGS["methods"], "value", ["fast"])
        with pytest.raises(UserError, match="unknown 'fast'"):
            benchmark.main([])
