# SPDX-License-Identifier: Apache-2.0
"""FastSpeech2: its settings, layers and loss, ESPnet's checkpoints, and graphs of its inference."""
