# SPDX-License-Identifier: Apache-2.0
"""Dense, constant sparsity and SNIPER side by side: `python -m sniper.compare`."""
