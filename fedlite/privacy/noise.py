"""Standard normal noise for named arrays."""

from collections.abc import Mapping

import jax


def normal_like(key, like: Mapping[str, object]) -> dict[str, object]:
    """Independent standard normal arrays with the shapes and types of `like`, by path."""
    return {
        path: jax.random.normal(jax.random.fold_in(key, index), array.shape, array.dtype)
        for index, (path, array) in enumerate(sorted(like.items()))
    }
