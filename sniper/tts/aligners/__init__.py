# SPDX-License-Identifier: Apache-2.0
"""Forced alignment of recordings and their transcripts, written as TextGrids.

`english` needs no training: pocketsphinx with its own acoustic model. `learned` trains a small
aligner on the corpus itself, for any language and any set of phones.
"""
