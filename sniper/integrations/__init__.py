# SPDX-License-Identifier: Apache-2.0
"""SNIPER inside other people's trainers. Nothing is loaded until it is asked for:
`sniper.integrations.huggingface` needs transformers, `sniper.integrations.lightning` Lightning.
"""
