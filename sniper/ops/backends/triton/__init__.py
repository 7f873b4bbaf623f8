# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: products and elementwise work on NVIDIA GPUs; importable without either."""
