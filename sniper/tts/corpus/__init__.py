# SPDX-License-Identifier: Apache-2.0
"""Recordings and their alignments to prepared feature files, and those to batches."""
