"""Fixtures that the model tests share."""

import flax.linen as nn
import numpy as np
import pytest

from fedlite.models import units


@pytest.fixture(scope="session")
def random_params():
    """Parameters without a zero bias or unit scale, which would hide a wrongly taken entry."""

    def make(model: nn.Module, example, scale: float = 0.5) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        return {
            path: rng.normal(0, scale, shape).astype(np.float32)
            for path, shape in units.param_shapes(model, example).items()
        }

    return make
