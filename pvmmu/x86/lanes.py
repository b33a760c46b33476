"""Small arrays on the stack, for kernels that do many walks side by side."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils, config as numba_config
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

#: Elements of an array from `lanes`.
LANES: Final = 64


@intrinsic
def _on_stack(typingctx):  # type: ignore[no-untyped-def]
    array = types.Array(types.uint64, 1, "C")

    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        # LLVM can prove that nothing else points to this memory, and so vectorises loops that store
        # to it and load through an index from elsewhere (gathers). With arrays of numpy it cannot.
        place = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(64), LANES))
        out = make_array(array)(context, builder)
        populate_array(
            out,
            data=builder.bitcast(place, ir.IntType(64).as_pointer()),
            shape=[context.get_constant(types.intp, LANES)],
            strides=[context.get_constant(types.intp, 8)],
            itemsize=context.get_constant(types.intp, 8),
            meminfo=None,
        )
        return out._getvalue()

    return array(), build


def _in_python() -> np.ndarray:
    return np.empty(LANES, np.uint64)


#: Return an uninitialised uint64[LANES] that lives until the calling kernel returns.
lanes: Any = _in_python if numba_config.DISABLE_JIT else _on_stack  # type: ignore[attr-defined]
