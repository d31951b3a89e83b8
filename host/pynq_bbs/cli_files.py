# SPDX-License-Identifier: Apache-2.0
"""What the commands share: options, arrays from and to files, and a bar for what takes long."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add_method(parser: argparse.ArgumentParser) -> None:
    """`--method`, of calibration."""
    parser.add_argument(
        "--method",
        default="minmax",
        choices=("minmax", "percentile", "entropy", "mse"),
        help="how the range of each activation is chosen (default: minmax)",
    )


def add_weight_bits(parser: argparse.ArgumentParser) -> None:
    """`--weight-bits`, of all layers."""
    parser.add_argument(
        "--weight-bits", type=int, default=8, choices=(8, 4), help="of weights (default: 8)"
    )


def arrays_of(x: NDArray[Any] | dict[str, NDArray[Any]]) -> Iterator[NDArray[Any]]:
    yield from x.values() if isinstance(x, dict) else (x,)


def load_arrays(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array of an .npy file, mapped and not read, or the arrays of an .npz file by name."""
    import numpy as np

    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        else:
            arrays = {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    except FileNotFoundError:
        raise InputError(f"no file {str(path)!r}: check the path") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path} is not an .npy or .npz file of numbers ({error}); numpy.save writes them"
        ) from None
    if not arrays or any(a.ndim == 0 for a in arrays.values()):
        raise InputError(f"{path} holds no batch: wanted arrays of shape (N, ...)")
    return arrays[""] if "" in arrays else arrays


def save_arrays(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    import numpy as np

    with open(path, "wb") as file:
        if path.suffix == ".npz":
            np.savez(file, **arrays)
        elif len(arrays) == 1:
            np.save(file, next(iter(arrays.values())))
        else:
            raise InputError(
                f"{path} can hold one array, the model has the outputs {', '.join(arrays)}: "
                "name an .npz file"
            )


def writing(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def progress(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, where tqdm is installed; takes how much is done so far."""
    try:
        from tqdm import tqdm
    except ImportError:  # a board carries no tqdm
        yield lambda done: None
        return
    with tqdm(total=total, desc=text, disable=None, leave=False, delay=0.5) as bar:
        yield lambda done: bar.update(done - bar.n)
