# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: products, elementwise work and attention weights in C++ on torch's threads."""
