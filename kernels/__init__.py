# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for block-sparse products, and the tile sizes they are launched with.

They know pointers, sizes and strides; checks, launches and tensors are
`sniper.ops.backends.triton`'s.
"""
