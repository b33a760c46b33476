"""Move-to-front of a whole set of tags in a few vector instructions.

Written in LLVM's vector IR: any processor runs it, those with AVX-512 in about ten instructions.
With the JIT disabled, plain Python takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import config as numba_config
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _compiled(lanes: int) -> Any:
    vector, bits = ir.VectorType(_I64, lanes), ir.IntType(lanes)
    select = ir.VectorType(_I32, lanes)

    @intrinsic
    def move_to_front(typingctx, tags, at, key, top):  # type: ignore[no-untyped-def]
        def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
            array, index, first, last = args
            data = make_array(signature.args[0])(context, builder, array).data
            place = builder.bitcast(builder.gep(data, [index]), vector.as_pointer())
            old = builder.load(place)
            old.align = 8
            nothing = ir.Constant(vector, ir.Undefined)
            new = builder.insert_element(nothing, first, ir.Constant(_I32, 0))
            new = builder.shuffle_vector(new, nothing, ir.Constant(select, [0] * lanes))
            found = builder.zext(builder.bitcast(builder.icmp_unsigned("==", old, new), bits), _I64)
            one = ir.Constant(_I64, 1)
            ways = builder.sub(builder.shl(last, one), one)
            found = builder.and_(found, ways)
            # lanes up to the one found, or to the last way: these move
            stop = builder.or_(found, last)
            moving = builder.trunc(builder.xor(stop, builder.sub(stop, one)), bits)
            shift = ir.Constant(select, [0] + [lanes + i for i in range(lanes - 1)])
            moved = builder.select(
                builder.bitcast(moving, ir.VectorType(ir.IntType(1), lanes)),
                builder.shuffle_vector(new, old, shift),
                old,
            )
            if lanes == 4 and "+avx512vl" in context.codegen().magic_tuple()[2]:
                # Keeps LLVM from making a masked store of select and store: the next load of this
                # set could not be forwarded from it, which costs half as much again.
                kind = ir.FunctionType(vector, [vector])
                moved = builder.asm(kind, "", "=v,0", [moved], False)
            builder.store(moved, place).align = 8
            missed = builder.icmp_unsigned("==", found, ir.Constant(_I64, 0))
            way = builder.cttz(stop, ir.Constant(ir.IntType(1), 1))
            return builder.select(missed, ir.Constant(_I64, 64), way)

        return types.uint64(tags, types.uint64, types.uint64, types.uint64), build

    return move_to_front


def _python(lanes: int) -> Callable[..., Any]:
    def move_to_front(tags, at, key, top):  # type: ignore[no-untyped-def]
        ways = int(top).bit_length()
        own = tags[int(at) : int(at) + ways]
        hits = np.flatnonzero(own == key)
        way = int(hits[0]) if len(hits) else ways - 1
        own[1 : way + 1] = own[:way].copy()
        own[0] = key
        return np.uint64(way if len(hits) else 64)

    return move_to_front


def _either(lanes: int) -> Any:
    return _python(lanes) if numba_config.DISABLE_JIT else _compiled(lanes)  # type: ignore[attr-defined]


#: ``move_to_front_n(tags, at, key, top)``: look for ``key`` among the ways of a set that begins at
#: ``tags[at]`` and has room for n tags; ``top`` is the bit of its last way. Returns the way where
#: the key was, 64 if it was not there; in either case it is first then.
move_to_front_4 = _either(4)
move_to_front_16 = _either(16)
