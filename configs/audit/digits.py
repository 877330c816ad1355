"""One run of digits with 400 wrong labels, each in by a fair coin.

    python scripts/audit.py --config=configs/audit/digits.py

The training of configs/digits.py at epsilon 8; the adversary sees the final
model alone. The figures are in docs/audits.md.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
  config = digits.get_config()
  config.privacy.target_epsilon = 8.0
  config.privacy.max_epsilon = None
  config.privacy.neighboring_relation = "REPLACE_SPECIAL"
  config.audit = {"canaries": 400, "confidence": 0.95, "seed": 0}
  return config
