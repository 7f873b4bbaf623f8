# SPDX-License-Identifier: Apache-2.0
"""Speech: text and audio below, then corpus, then model; `speaker` puts them together.

Knows nothing of sparsity.
"""
