"""The offline demo: a small trained base model, instruction data and a benchmark, all built from one seed.

``python -m xft_core.demo.build`` regenerates every file in this folder that is not source code. The results are
shipped so that the pipeline can be run from end to end without a network.
"""

from pathlib import Path

DEMO_DIR = Path(__file__).parent
