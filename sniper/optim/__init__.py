# SPDX-License-Identifier: Apache-2.0
"""Optimizers that visit active blocks only."""

from sniper.optim.adam import Adam, AdamW

__all__ = ["Adam", "AdamW"]
